"""Operations on pixels: decoding, resampling, finishing, the fused GPU kernels, and the reference for them."""
