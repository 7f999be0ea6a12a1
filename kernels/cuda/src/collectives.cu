// What tensor ranks do together.
#include "sumrows.cuh"
