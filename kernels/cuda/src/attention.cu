// Attention over the paged cache.
#include "decode.cuh"
#include "spread.cuh"
#include "walk.cuh"
#include "prompt.cuh"
#include "wideprompt.cuh"
