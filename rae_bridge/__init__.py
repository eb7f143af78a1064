"""RAE's second stage on any frozen encoder: latents, DiT-DH by flow matching, sampling, pixel decoders."""
