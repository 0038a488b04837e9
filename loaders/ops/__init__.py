"""Operations on pixels: decoding, resampling, finishing, fused GPU kernels, and the reference they must agree with."""
