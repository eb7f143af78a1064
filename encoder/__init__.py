"""OpenVision 3: the encoder, its training, and the frozen-encoder contract that both bridges stand on."""
