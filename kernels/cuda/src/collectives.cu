// What tensor ranks do together.
#include "reduce.cuh"
