"""Pure knowledge of provider APIs: what a request asks, what an answer consumed, how to say no. No I/O."""
