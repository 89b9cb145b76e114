"""Implementations of the submanifold 3x3x3 convolution, one file each; `registry` says what each defines.

`convolve(feats [N, Cin], weight [Cout, 3, 3, 3, Cin], bias [Cout] | None, coordinates) -> [N, Cout]`.
`torch_backend` is the reference on every machine; `triton_backend` is the fast one on CUDA, where its kernels are
loaded from the modules named `*_triton`; `spconv_backend` takes an installed spconv.
"""
