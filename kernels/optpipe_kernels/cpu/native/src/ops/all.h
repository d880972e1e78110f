/* Every op, in a table that has the same order at every level: a kernel's number is its place in it. */
#include "ops/quantize.h"
#include "ops/packed.h"
#include "ops/sweep.h"
#include "ops/quant_linear.h"
#include "ops/argmax.h"

static const Entry TABLE[] = {
    {"argmax", argmax, check_argmax},
    {"pack", pack, check_pack},
    {"quantize", quantize, check_quantize},
    {"quant_linear", quant_linear, check_quant_linear},
};

extern const Entry *const table;
extern const int count;
const Entry *const table = TABLE;
const int count = sizeof TABLE / sizeof TABLE[0];
