"""Plans carried out on the device, a batch at a time: by `reference` in plain torch, with which all are compared, and
by the fused kernels, from the first read on."""
