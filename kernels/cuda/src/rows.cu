// Everything that works on rows: embedding, norms, experts' routing, sampling, loading.
#include "experts.cuh"
#include "norm.cuh"
#include "pack.cuh"
#include "rows.cuh"
#include "sample.cuh"
