"""The harness: one command from a frozen encoder to its row in both leaderboards."""
