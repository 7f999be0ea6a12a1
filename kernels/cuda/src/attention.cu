// Attention over the paged cache.
#include "decode.cuh"
#include "prompt.cuh"
