// Attention over the paged cache.
#include "decode.cuh"
#include "spread.cuh"
#include "prompt.cuh"
#include "wideprompt.cuh"
