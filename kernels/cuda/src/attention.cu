// Attention over the paged cache.
#include "decode.cuh"
#include "prompt.cuh"
#include "wideprompt.cuh"
