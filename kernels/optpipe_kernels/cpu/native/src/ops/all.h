/* Every op, in a table that has the same order at every level: a kernel's number is its place in it. */
#include "ops/quantize.h"
#include "ops/packed.h"
#include "ops/sweep.h"
#include "ops/gated.h"
#include "ops/best.h"
#include "ops/quant_linear.h"
#include "ops/linear_pairs.h"
#include "ops/linear.h"
#include "ops/argmax.h"
#include "ops/topk.h"
#include "ops/machine.h"
#include "ops/strided.h"
#include "ops/rows.h"
#include "ops/copy.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/softmax.h"
#include "ops/index_select.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"
#include "ops/layer_norm.h"
#include "ops/gated_act.h"
#include "ops/rope.h"
#include "ops/kv_cache.h"
#include "ops/attention_units.h"
#include "ops/attention_softmax.h"
#include "ops/attention_float.h"
#include "ops/attention_pairs.h"
#include "ops/attention_int8.h"
#include "ops/paged_attention.h"
#include "ops/moe.h"

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
    {"machine_pairs", machine_pairs, check_machine},
    {"neg", unary<Neg>, check_unary},
    {"abs", unary<Abs>, check_unary},
    {"sqrt", unary<Sqrt>, check_unary},
    {"rsqrt", unary<Rsqrt>, check_unary},
    {"exp", unary<Exp>, check_unary},
    {"log", unary<Lanes<logf>>, check_unary},
    {"sin", unary<Lanes<sinf>>, check_unary},
    {"cos", unary<Lanes<cosf>>, check_unary},
    {"tanh", unary<Tanh>, check_unary},
    {"sigmoid", unary<Sigmoid>, check_unary},
    {"silu", unary<Silu>, check_unary},
    {"relu", unary<Relu>, check_unary},
    {"square", unary<Square>, check_unary},
    {"reciprocal", unary<Reciprocal>, check_unary},
    {"floor", unary<Floor>, check_unary},
    {"round", unary<Round>, check_unary},
    {"erf", unary<Erf>, check_unary},
    {"logical_not", unary<Not>, check_unary},
    {"gelu", unary<Gelu>, check_unary},
    {"gelu_tanh", unary<GeluTanh>, check_unary},
    {"add", binary<Add>, check_binary},
    {"sub", binary<Sub>, check_binary},
    {"mul", binary<Mul>, check_binary},
    {"maximum", binary<Maximum>, check_binary},
    {"minimum", binary<Minimum>, check_binary},
    {"eq", binary<Eq>, check_binary},
    {"ne", binary<Ne>, check_binary},
    {"lt", binary<Lt>, check_binary},
    {"le", binary<Le>, check_binary},
    {"gt", binary<Gt>, check_binary},
    {"ge", binary<Ge>, check_binary},
    {"logical_and", binary<And>, check_binary},
    {"logical_or", binary<Or>, check_binary},
    {"bitwise_and", binary<BitAnd>, check_binary},
    {"bitwise_or", binary<BitOr>, check_binary},
    {"div", binary<Div, false>, check_binary},
    {"pow", binary<Pow, false>, check_binary},
    {"sum", reduce<SumOf, false>, check_reduce},
    {"mean", reduce<SumOf, true>, check_reduce},
    {"amax", reduce<LargestOf, false>, check_reduce},
    {"amin", reduce<LeastOf, false>, check_reduce},
    {"copy", copy, check_copy},
    {"fill", fill, check_fill},
    {"clamp", clamp, check_clamp},
    {"where", where, check_where},
    {"index_select", index_select, check_index_select},
    {"gather", gather, check_gather},
    {"embedding", embedding, check_embedding},
    {"rms_norm", rms_norm, check_rms_norm},
    {"add_rms_norm", add_rms_norm, check_add_rms_norm},
    {"layer_norm", layer_norm, check_layer_norm},
    {"gated_act", gated_act, check_gated_act},
    {"rope", rope, check_rope},
    {"kv_write", kv_write, check_kv_write},
    {"rope_kv_write", rope_kv_write, check_rope_kv_write},
    {"paged_attention", paged_attention, check_paged_attention, reads_of_attention},
    {"moe", moe, check_moe},
    {"softmax", softmax<false>, check_softmax},
    {"log_softmax", softmax<true>, check_softmax},
};

extern const Entry *const table;
extern const int count;
const Entry *const table = TABLE;
const int count = sizeof TABLE / sizeof TABLE[0];
