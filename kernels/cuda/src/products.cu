// The products. Three images are compiled apart (products, attention, rows), so
// that a change builds in a minute; kernels/cuda embeds and loads them all.
#include "gemm.cuh"
#include "gemv.cuh"
#include "joint.cuh"
#include "line.cuh"
#include "plain.cuh"
#include "wide.cuh"
