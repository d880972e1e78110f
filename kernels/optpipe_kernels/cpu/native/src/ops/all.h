/* Every op, in a table that has the same order at every level: a kernel's number is its place in it. */
#include "ops/quantize.h"
#include "ops/packed.h"
#include "ops/sweep.h"
#include "ops/gated.h"
#include "ops/best.h"
#include "ops/quant_linear.h"
#include "ops/linear.h"
#include "ops/argmax.h"
#include "ops/topk.h"
#include "ops/machine.h"

static const Entry TABLE[] = {
    {"argmax", argmax, check_argmax},
    {"pack", pack, check_pack},
    {"quantize", quantize, check_quantize},
    {"quant_linear", quant_linear, check_quant_linear},
    {"quant_linear_gated", quant_linear_gated, check_quant_linear_gated},
    {"quant_linear_argmax", quant_linear_argmax, check_quant_linear_argmax},
    {"linear", linear, check_linear},
    {"linear_gated", linear_gated, check_linear_gated},
    {"linear_argmax", linear_argmax, check_linear_argmax},
    {"topk", topk, check_topk},
    {"machine_read", machine_read, check_machine_read},
    {"machine_dots", machine_dots, check_machine},
    {"machine_fmas", machine_fmas, check_machine},
};

extern const Entry *const table;
extern const int count;
const Entry *const table = TABLE;
const int count = sizeof TABLE / sizeof TABLE[0];
