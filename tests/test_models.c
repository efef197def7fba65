/* test_models.c - families without golden data: small checkpoints under their real names and config keys
 *
 * Every row of `families` is a checkpoint in a few words: config.json, the tensors with their shapes, where each of
 * gate, up and down must come from, and the fields that the desc must have. The tensors hold numbers that say where
 * they are, so a matrix read from the wrong place, half or way round shows. Each desc must also pass moe_layer_init
 * and run.
 *     cc -std=c11 -O2 -I. -o build/test_models tests/test_models.c -lm && build/test_models
 */
#include "../examples/checkpoint.h"
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include "../examples/checkpoint_layer.h"

#define TMP "build/tmp_models"
static int passed, failed, skipped;

static int check(int ok, const char *name, const char *format, ...) CKPT_PRINTF(3, 4);
static int check(int ok, const char *name, const char *format, ...) {
    if (ok) {
        passed++;
        return 1;
    }
    va_list args;
    failed++;
    printf("FAIL %s: ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    return 0;
}

/* ---- The families ---- */

enum { D = 8, FF = 6, E = 4, LATENT = 4 }; /* the sizes of all rows: d_model, d_ff, experts; k is 2 unless said */

/* tensors: "NAME[dims]" or "NAME:TYPE[dims]" separated by blanks; %e stands for each expert (%v: for one of the second bank); TYPE f32 (usual), bf16,
   i64, i32.
   gate, up, down: "LAYOUT NAME": how element (expert e, row r, input k) lies in the tensor NAME.
     .  [rows,k] or [E,rows,k]      a  the first half of stored rows      b  the second half
     i  every second row from 0     j  from 1                            t  [k,rows]
     A  first half of [k, 2 rows]   B  second half                        I, J  every second column of [k, 2 rows]
   knobs: "field=value" as --list prints them, separated by ";". */
typedef struct family {
    const char *name, *layer, *config, *tensors, *gate, *up, *down, *knobs;
} family;

#define PER(base)                                                                                                    \
    base "experts.%e.gate_proj.weight[6,8] " base "experts.%e.up_proj.weight[6,8] " base                             \
         "experts.%e.down_proj.weight[8,6] "
#define W123(base)                                                                                                   \
    base "experts.%e.w1.weight[6,8] " base "experts.%e.w3.weight[6,8] " base "experts.%e.w2.weight[8,6] "
#define PER_AT(base)                                                                                                 \
    ". " base "experts.%e.gate_proj.weight", ". " base "experts.%e.up_proj.weight",                                  \
        ". " base "experts.%e.down_proj.weight"
#define W123_AT(base)                                                                                                \
    ". " base "experts.%e.w1.weight", ". " base "experts.%e.w3.weight", ". " base "experts.%e.w2.weight"
#define SHARED(base, n)                                                                                              \
    base "gate_proj.weight[" n ",8] " base "up_proj.weight[" n ",8] " base "down_proj.weight[8," n "] "
#define FUSED_AT(base)                                                                                               \
    "a " base "experts.gate_up_proj", "b " base "experts.gate_up_proj", ". " base "experts.down_proj"
#define M1 "model.layers.1.mlp."
#define S1 "model.layers.1.block_sparse_moe."
#define F1 "model.layers.1.feed_forward."

static const family families[] = {
    {"Qwen3-VL-MoE", "1",
     "{'model_type':'qwen3_vl_moe','text_config':{'model_type':'qwen3_vl_moe_text','hidden_size':8,'num_experts':4,'"
     "num_experts_per_tok':2,'moe_intermediate_size':6,'norm_topk_prob':true,'hidden_act':'silu'}}",
     "model.language_model.layers.1.mlp.gate.weight[4,8] "
     "model.language_model.layers.1.mlp.experts.gate_up_proj:bf16[4,8,12] "
     "model.language_model.layers.1.mlp.experts.down_proj:bf16[4,6,8]",
     "A model.language_model.layers.1.mlp.experts.gate_up_proj",
     "B model.language_model.layers.1.mlp.experts.gate_up_proj",
     "t model.language_model.layers.1.mlp.experts.down_proj", "router.score=softmax;router.norm=sum;top_k=2"},
    {"Qwen3-Omni", "1",
     "{'model_type':'qwen3_omni_moe','thinker_config':{'text_config':{'model_type':'qwen3_omni_moe_text','hidden_"
     "size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'norm_topk_prob':true}}}",
     "thinker.model.layers.1.mlp.gate.weight[4,8] " PER("thinker.model.layers.1.mlp."),
     PER_AT("thinker.model.layers.1.mlp."), "router.norm=sum;top_k=2"},
    {"Qwen2-57B-A14B", "1",
     "{'model_type':'qwen2_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'"
     "intermediate_size':99,'shared_expert_intermediate_size':10}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_expert.", "10") M1 "shared_expert_gate.weight[1,8]", PER_AT(M1),
     "router.norm=none;shared.d_ff=10;shared.gate_kind=sigmoid"},
    {"FlexOlmo", "1",
     "{'model_type':'flex_olmo','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'intermediate_size':6,'norm_"
     "topk_prob':false}",
     M1 "gate.weight[4,8] " PER(M1), PER_AT(M1), "router.norm=none"},
    {"DeepSeekMoE-16B", "1",
     "{'model_type':'deepseek','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':"
     "6,'n_shared_experts':2,'norm_topk_prob':false,'scoring_func':'softmax','first_k_dense_replace':1,'moe_layer_"
     "freq':1}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_experts.", "12"), PER_AT(M1),
     "router.norm=none;router.score=softmax;router.group=none;shared.d_ff=12"},
    {"DeepSeek-V2-Lite", "1",
     "{'model_type':'deepseek_v2','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':2,'norm_topk_prob':false,'scoring_func':'softmax','topk_method':'greedy','n_group':"
     "1,'topk_group':1,'routed_scaling_factor':1.0}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_experts.", "12"), PER_AT(M1),
     "router.group=none;router.routed_scale=1;router.norm=none"},
    {"DeepSeek-V3.2", "3",
     "{'model_type':'deepseek_v32','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':1,'n_group':2,'topk_group':1,'topk_method':'noaux_tc','norm_topk_prob':true,'"
     "scoring_func':'sigmoid','routed_scaling_factor':2.5}",
     "model.layers.3.mlp.gate.weight[4,8] model.layers.3.mlp.gate.e_score_correction_bias[4] " PER(
         "model.layers.3.mlp.") SHARED("model.layers.3.mlp.shared_experts.", "6"),
     PER_AT("model.layers.3.mlp."),
     "router.score=sigmoid;router.group=sum of 2 "
     "best;router.n_group=2;router.topk_group=1;router.routed_scale=2.5;router.norm_eps=1e-20"},
    {"DeepSeek-V4 fused", "1",
     "{'model_type':'deepseek_v4','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':1,'scoring_func':'sqrtsoftplus','norm_topk_prob':true,'routed_scaling_factor':1.5,'"
     "swiglu_limit':10.0,'num_hash_layers':2}",
     M1 "gate.weight[4,8] " M1 "gate.tid2eid:i64[16,2] " M1 "experts.gate_up_proj[4,12,8] " M1
        "experts.down_proj[4,8,6] " SHARED(M1 "shared_experts.", "6"),
     FUSED_AT(M1), "router.pick=table;router.score=sqrt(softplus);ffn.clamp=before;ffn.limit=10;shared.limit=10"},
    {"Kimi-K2", "1",
     "{'model_type':'kimi_k2','architectures':['DeepseekV3ForCausalLM'],'hidden_size':8,'n_routed_experts':4,'num_"
     "experts_per_tok':2,'moe_intermediate_size':6,'n_shared_experts':1,'n_group':1,'topk_group':1,'topk_method':'"
     "noaux_tc','norm_topk_prob':true,'scoring_func':'sigmoid','routed_scaling_factor':2.827}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.score=sigmoid;router.group=none;router.routed_scale=2.827;router.norm_eps=1e-20"},
    {"Kimi-K2.5", "1",
     "{'model_type':'kimi_k25','text_config':{'model_type':'kimi_k2','hidden_size':8,'n_routed_experts':4,'num_"
     "experts_per_tok':2,'moe_intermediate_size':6,'n_shared_experts':1,'n_group':1,'topk_group':1,'norm_topk_prob':"
     "true,'scoring_func':'sigmoid','routed_scaling_factor':2.827}}",
     "language_model.model.layers.1.mlp.gate.weight[4,8] "
     "language_model.model.layers.1.mlp.gate.e_score_correction_bias[4] " PER("language_model.model.layers.1.mlp.")
         SHARED("language_model.model.layers.1.mlp.shared_experts.", "6"),
     PER_AT("language_model.model.layers.1.mlp."), "router.score=sigmoid;router.routed_scale=2.827"},
    {"Kimi-Linear-48B", "1",
     "{'model_type':'kimi_linear','hidden_size':8,'num_experts':4,'num_experts_per_token':2,'moe_intermediate_size':"
     "6,'num_shared_experts':1,'moe_renormalize':true,'moe_router_activation_func':'sigmoid','routed_scaling_factor':"
     "2.446,'num_expert_group':1,'topk_group':1,'hidden_act':'silu'}",
     S1 "gate.weight[4,8] " S1 "gate.e_score_correction_bias[4] " W123(S1) SHARED(S1 "shared_experts.", "6"),
     W123_AT(S1), "router.score=sigmoid;router.weight_from=score;router.routed_scale=2.446;router.norm=sum"},
    {"Kimi-K3", "1",
     "{'model_type':'kimi_k3','text_config':{'model_type':'kimi_linear','hidden_size':8,'num_experts':4,'num_experts_"
     "per_token':2,'moe_intermediate_size':6,'num_shared_experts':2,'moe_renormalize':true,'moe_router_activation_"
     "func':'sigmoid','routed_scaling_factor':1.0,'routed_expert_hidden_size':4,'latent_moe_use_norm':true,'hidden_"
     "act':'situ','activation_situ_beta':4.0,'activation_situ_linear_beta':25.0,'rms_norm_eps':1e-5}}",
     "language_model." S1 "gate.weight[4,8] language_model." S1 "gate.e_score_correction_bias[4] language_model." S1
     "experts.%e.w1.weight[6,4] language_model." S1 "experts.%e.w3.weight[6,4] language_model." S1
     "experts.%e.w2.weight[4,6] " SHARED(
         "language_model." S1 "shared_experts.",
         "12") "language_model." S1 "routed_expert_down_proj.weight[4,8] language_model." S1
               "routed_expert_up_proj.weight[8,4] language_model." S1 "routed_expert_norm.weight[4]",
     W123_AT("language_model." S1),
     "ffn.activation=situ;ffn.beta=4;ffn.linear_beta=25;latent.d=4;latent.norm_eps=1e-05;router.norm_eps=1e-20"},
    {"GLM-4.7-Flash", "1",
     "{'model_type':'glm4_moe_lite','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':1,'n_group':1,'topk_group':1,'topk_method':'noaux_tc','norm_topk_prob':true,'routed_"
     "scaling_factor':1.8}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.score=sigmoid;router.routed_scale=1.8;router.group=none"},
    {"GLM-5", "1",
     "{'model_type':'glm_moe_dsa','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':1,'n_group':1,'topk_group':1,'norm_topk_prob':true,'scoring_func':'sigmoid','routed_"
     "scaling_factor':2.5}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.score=sigmoid;router.norm_eps=1e-20"},
    {"gpt-oss as first released", "1",
     "{'model_type':'gpt_oss','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'experts_per_token':2,'"
     "swiglu_limit':7.0}",
     "block.1.mlp.gate.weight[4,8] block.1.mlp.gate.bias[4] block.1.mlp.mlp1_weight:bf16[4,12,8] "
     "block.1.mlp.mlp1_bias:bf16[4,12] block.1.mlp.mlp2_weight:bf16[4,8,6] block.1.mlp.mlp2_bias:bf16[4,8]",
     "i block.1.mlp.mlp1_weight", "j block.1.mlp.mlp1_weight", ". block.1.mlp.mlp2_weight",
     "ffn.activation=oai;ffn.limit=7;router.weight_from=softmax of the selected;router.select_on=logit;top_k=2"},
    {"Phi-3.5-MoE fused", "1",
     "{'model_type':'phimoe','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':2,'"
     "router_jitter_noise':0.01}",
     M1 "router.weight[4,8] " M1 "experts.gate_up_proj[4,12,8] " M1 "experts.down_proj[4,8,6]", FUSED_AT(M1),
     "router.pick=sparsemixer;router.jitter=0.01"},
    {"Grok-2", "1",
     "{'architectures':['Grok1ForCausalLM'],'model_type':'git','hidden_size':8,'intermediate_size':16,'moe_"
     "intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':2,'router_logit_softcapping':30.0,'hidden_act'"
     ":'gelu','residual_moe':true}",
     S1 "gate.weight[4,8] " W123(S1) SHARED(M1, "16"), W123_AT(S1),
     "ffn.activation=gelu tanh;router.softcap=30;router.norm=none;ffn.combine_scale=0.7071068;shared.d_ff=16"},
    {"Granite-4.0-H", "1",
     "{'model_type':'granitemoehybrid','hidden_size':8,'intermediate_size':6,'shared_intermediate_size':10,'num_"
     "local_experts':4,'num_experts_per_tok':2,'hidden_act':'silu'}",
     S1 "router.layer.weight[4,8] " S1 "input_linear.weight[4,12,8] " S1
        "output_linear.weight[4,8,6] model.layers.1.shared_mlp.input_linear.weight[20,8] "
        "model.layers.1.shared_mlp.output_linear.weight[8,10]",
     "a " S1 "input_linear.weight", "b " S1 "input_linear.weight", ". " S1 "output_linear.weight",
     "router.weight_from=softmax of the selected;shared.d_ff=10"},
    {"Granite fused by newer tools", "1",
     "{'model_type':'granitemoe','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':"
     "2}",
     S1 "router.weight[4,8] " S1 "experts.gate_up_proj[4,12,8] " S1 "experts.down_proj[4,8,6]", FUSED_AT(S1),
     "router.select_on=logit"},
    {"Jamba fused", "1",
     "{'model_type':'jamba','hidden_size':8,'intermediate_size':6,'num_experts':4,'num_experts_per_tok':2}",
     F1 "router.weight[4,8] " F1 "experts.gate_up_proj[4,12,8] " F1 "experts.down_proj[4,8,6]", FUSED_AT(F1),
     "router.norm=none"},
    {"Arctic", "1",
     "{'model_type':'arctic','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':2}",
     S1 "gate.weight[4,8] " W123(S1) "model.layers.1.residual_mlp.w1.weight[8,8]", W123_AT(S1), "router.norm=sum"},
    {"NLLB-MoE-54B", "encoder.3",
     "{'model_type':'nllb-moe','d_model':8,'encoder_ffn_dim':6,'decoder_ffn_dim':6,'num_experts':4,'expert_capacity':"
     "64,'moe_eval_capacity_token_fraction':1.0,'moe_token_dropout':0.2,'normalize_router_prob_before_dropping':"
     "false,'batch_prioritized_routing':false,'router_bias':false,'activation_function':'relu'}",
     "model.encoder.layers.3.ffn.router.classifier.weight[4,8] "
     "model.encoder.layers.3.ffn.experts.expert_%e.fc1.weight[6,8] "
     "model.encoder.layers.3.ffn.experts.expert_%e.fc1.bias[6] "
     "model.encoder.layers.3.ffn.experts.expert_%e.fc2.weight[8,6] "
     "model.encoder.layers.3.ffn.experts.expert_%e.fc2.bias[8]",
     "", ". model.encoder.layers.3.ffn.experts.expert_%e.fc1.weight",
     ". model.encoder.layers.3.ffn.experts.expert_%e.fc2.weight",
     "ffn.ungated=1;ffn.activation=relu;ffn.expert_out_scale=0.8;router.norm=sum;router.capacity=0;router.capacity_"
     "norm_after=1"},
    {"NLLB-MoE, half capacity", "decoder.3",
     "{'model_type':'nllb-moe','d_model':8,'decoder_ffn_dim':6,'num_experts':4,'expert_capacity':64,'moe_eval_"
     "capacity_token_fraction':0.5,'moe_token_dropout':0.0,'normalize_router_prob_before_dropping':true,'batch_"
     "prioritized_routing':true}",
     "model.decoder.layers.3.ffn.router.classifier.weight[4,8] "
     "model.decoder.layers.3.ffn.experts.expert_%e.fc1.weight[6,8] "
     "model.decoder.layers.3.ffn.experts.expert_%e.fc2.weight[8,6]",
     "", ". model.decoder.layers.3.ffn.experts.expert_%e.fc1.weight",
     ". model.decoder.layers.3.ffn.experts.expert_%e.fc2.weight",
     "router.capacity_factor=0.5;router.capacity_norm_after=0;router.capacity_by_score=1;ffn.expert_out_scale=1"},
    {"MiniMax-M2", "1",
     "{'model_type':'minimax_m2','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':2,"
     "'scoring_func':'sigmoid','use_routing_bias':true}",
     S1 "gate.weight[4,8] " S1 "e_score_correction_bias[4] " W123(S1), W123_AT(S1),
     "router.score=sigmoid;router.norm=sum"},
    {"MiniMax-M3", "1",
     "{'model_type':'minimax_m3_vl','text_config':{'model_type':'minimax_m3_vl_text','hidden_size':8,'intermediate_"
     "size':6,'dense_intermediate_size':32,'shared_intermediate_size':10,'num_local_experts':4,'num_experts_per_tok':"
     "2,'n_shared_experts':1,'scoring_func':'sigmoid','routed_scaling_factor':2.0,'hidden_act':'swigluoai','swiglu_"
     "alpha':1.702,'swiglu_limit':7.0}}",
     "language_model." S1 "gate.weight[4,8] language_model." S1
     "e_score_correction_bias[4] " W123("language_model." S1) SHARED("language_model." S1 "shared_experts.", "10"),
     W123_AT("language_model." S1),
     "ffn.activation=oai;ffn.clamp=before;ffn.limit=7;shared.limit=7;shared.d_ff=10;router.routed_scale=2"},
    {"MiniMax-M3 fused", "1",
     "{'model_type':'minimax_m3_vl','text_config':{'model_type':'minimax_m3_vl_text','hidden_size':8,'intermediate_"
     "size':6,'num_local_experts':4,'num_experts_per_tok':2,'routed_scaling_factor':2.0,'hidden_act':'silu','swiglu_"
     "limit':7.0}}",
     "model.language_model.layers.1.mlp.gate.weight[4,8] "
     "model.language_model.layers.1.mlp.gate.e_score_correction_bias[4] "
     "model.language_model.layers.1.mlp.experts.gate_up_proj[4,12,8] "
     "model.language_model.layers.1.mlp.experts.down_proj[4,8,6] "
     "model.language_model.layers.1.mlp.shared_experts.gate_up_proj.weight[20,8] "
     "model.language_model.layers.1.mlp.shared_experts.down_proj.weight[8,10]",
     FUSED_AT("model.language_model.layers.1.mlp."), "ffn.activation=oai;shared.d_ff=10"},
    {"ERNIE-4.5-VL text experts", "1",
     "{'model_type':'ernie4_5_vl_moe','text_config':{'model_type':'ernie4_5_vl_moe_text','hidden_size':8,'moe_num_"
     "experts':[4,4],'moe_intermediate_size':[6,4],'moe_k':2,'moe_num_shared_experts':1,'moe_norm_min':1e-12,'hidden_"
     "act':'silu'}}",
     M1 "gate.weight[8,4] " M1 "gate.weight_1[8,4] " M1 "moe_statics.e_score_correction_bias[2,4] " PER(M1) M1
     "experts.4.gate_proj.weight[4,8] " M1 "experts.4.up_proj.weight[4,8] " M1
     "experts.4.down_proj.weight[8,4] " SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.norm_min=1e-12;router.score=softmax;d_ff=6"},
    {"ERNIE-4.5-VL image experts", "vision.1",
     "{'model_type':'ernie4_5_moe_vl','hidden_size':8,'moe_num_experts':[4,4],'moe_intermediate_size':[4,6],'moe_k':"
     "2,"
     "'moe_num_shared_experts':1,'moe_layer_start_index':[1,1],'hidden_act':'silu'}",
     M1 "gate.weight[8,4] " M1 "gate.weight_1[8,4] " M1 "moe_statics.e_score_correction_bias[2,4] " M1
        "experts.%e.gate_proj.weight[4,8] " M1 "experts.%e.up_proj.weight[4,8] " M1
        "experts.%e.down_proj.weight[8,4] " M1 "experts.%v.gate_proj.weight[6,8] " M1
        "experts.%v.up_proj.weight[6,8] " M1 "experts.%v.down_proj.weight[8,6] " SHARED(M1 "shared_experts.", "4"),
     ". " M1 "experts.%v.gate_proj.weight", ". " M1 "experts.%v.up_proj.weight",
     ". " M1 "experts.%v.down_proj.weight", "router.norm_min=1e-12;router.score=softmax;d_ff=6;shared.d_ff=4"},
#define L1 "model.language_model.layers.1.mlp."
    {"ERNIE-4.5-VL image experts, fused", "vision.1",
     "{'model_type':'ernie4_5_vl_moe','text_config':{'model_type':'ernie4_5_vl_moe_text','hidden_size':8,'moe_num_"
     "experts':4,"
     "'moe_intermediate_size':[4,6],'moe_k':2,'moe_num_shared_experts':1,'hidden_act':'silu'}}",
     L1 "text_moe.gate.weight[4,8] " L1 "text_moe.gate.moe_statics.e_score_correction_bias[1,4] " L1
        "text_moe.experts.gate_up_proj[4,8,8] " L1 "text_moe.experts.down_proj[4,8,4] " L1
        "vision_moe.gate.weight[4,8] " L1 "vision_moe.gate.moe_statics.e_score_correction_bias[1,4] " L1
        "vision_moe.experts.gate_up_proj[4,12,8] " L1
        "vision_moe.experts.down_proj[4,8,6] " SHARED(L1 "shared_experts.", "4"),
     FUSED_AT(L1 "vision_moe."), "router.norm_min=1e-12;d_ff=6;shared.d_ff=4"},
    {"Hunyuan-A13B", "1",
     "{'model_type':'hunyuan_v1_moe','hidden_size':8,'intermediate_size':6,'num_experts':4,'moe_topk':[2,2],'num_"
     "shared_expert':[1,1],'moe_intermediate_size':[6,6],'hidden_act':'silu'}",
     M1 "gate.wg.weight[4,8] " PER(M1) SHARED(M1 "shared_mlp.", "6"), PER_AT(M1),
     "router.norm=sum;top_k=2;router.norm_skip_k1=1;shared.gate_kind=none"},
    {"HY-V3", "1",
     "{'model_type':'hy_v3','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'"
     "expert_hidden_dim':6,'num_shared_experts':1,'route_norm':true,'router_scaling_factor':2.826,'moe_router_use_"
     "sigmoid':true,'moe_router_enable_expert_bias':true}",
     M1 "router.gate.weight[4,8] " M1 "expert_bias[4] " PER(M1) SHARED(M1 "shared_mlp.", "6"), PER_AT(M1),
     "router.score=sigmoid;router.norm=sum;router.routed_scale=2.826"},
    {"LongCat-Flash", "1",
     "{'model_type':'longcat_flash','hidden_size':8,'ffn_hidden_size':32,'expert_ffn_hidden_size':6,'n_routed_"
     "experts':4,'zero_expert_num':2,'zero_expert_type':'identity','moe_topk':2,'routed_scaling_factor':6.0,'router_"
     "bias':false}",
     M1 "router.classifier.weight[6,8] " M1
        "router.e_score_correction_bias[6] " PER(M1) "model.layers.1.mlps.0.gate_proj.weight[32,8]",
     PER_AT(M1),
     "n_experts=4;n_zero_experts=2;zero_kind=identity;router.routed_scale=6;router.score=softmax;router.norm=none"},
    {"LongCat-Flash fused", "1",
     "{'model_type':'longcat_flash','hidden_size':8,'expert_ffn_hidden_size':6,'n_routed_experts':4,'zero_expert_num'"
     ":2,'moe_topk':2,'routed_scaling_factor':6.0}",
     M1 "router.classifier.weight[6,8] " M1 "router.e_score_correction_bias[6] " M1 "experts.gate_up_proj[6,12,8] " M1
        "experts.down_proj[4,8,6]",
     FUSED_AT(M1), "n_zero_experts=2"},
    {"Ling-lite", "1",
     "{'model_type':'bailing_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'"
     "num_shared_experts':2,'norm_topk_prob':true}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_experts.", "12"), PER_AT(M1),
     "router.score=softmax;router.norm=sum"},
    {"Ling-2.0", "1",
     "{'model_type':'bailing_moe_v2','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':"
     "6,'num_shared_experts':1,'norm_topk_prob':true,'n_group':2,'topk_group':1,'routed_scaling_factor':2.5,'score_"
     "function':'sigmoid','moe_router_enable_expert_bias':true}",
     M1 "gate.weight[4,8] " M1 "gate.expert_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "router.score=sigmoid;router.group=sum of 2 best;router.n_group=2"},
    {"Ling-3", "1",
     "{'model_type':'bailing_hybrid','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':"
     "6,'num_shared_experts':1,'norm_topk_prob':true,'n_group':2,'topk_group':1,'routed_scaling_factor':2.5,'score_"
     "function':'sigmoid','expert_swiglu_limit_list':[0,4.0],'share_expert_swiglu_limit_list':[0,5.0]}",
     M1 "gate.weight[4,8] " M1 "gate.expert_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "ffn.clamp=after;ffn.limit=4;shared.clamp=after;shared.limit=5"},
    {"Ling-3, a layer without limit", "1",
     "{'model_type':'bailing_hybrid','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':"
     "6,'num_shared_experts':1,'n_group':2,'topk_group':1,'expert_swiglu_limit_list':[4.0,0],'share_expert_swiglu_"
     "limit_list':[5.0]}",
     M1 "gate.weight[4,8] " M1 "gate.expert_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "ffn.clamp=none;shared.clamp=none"},
    {"Trinity (AFMoE)", "1",
     "{'model_type':'afmoe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'num_"
     "shared_experts':1,'score_func':'sigmoid','route_norm':true,'route_scale':2.826,'n_group':1,'topk_group':1}",
     M1 "router.gate.weight[4,8] " M1 "expert_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "router.score=sigmoid;router.routed_scale=2.826;router.norm=sum"},
    {"Nemotron-3 Nano", "1",
     "{'model_type':'nemotron_h','hidden_size':8,'intermediate_size':99,'n_routed_experts':4,'num_experts_per_tok':2,"
     "'moe_intermediate_size':6,'moe_shared_expert_intermediate_size':10,'n_shared_experts':1,'norm_topk_prob':true,'"
     "routed_scaling_factor':2.5,'n_group':1,'topk_group':1,'n_groups':8,'mlp_hidden_act':'relu2','mamba_hidden_act':"
     "'silu'}",
     "backbone.layers.1.mixer.gate.weight[4,8] backbone.layers.1.mixer.gate.e_score_correction_bias[4] "
     "backbone.layers.1.mixer.experts.%e.up_proj.weight[6,8] "
     "backbone.layers.1.mixer.experts.%e.down_proj.weight[8,6] "
     "backbone.layers.1.mixer.shared_experts.up_proj.weight[10,8] "
     "backbone.layers.1.mixer.shared_experts.down_proj.weight[8,10]",
     "", ". backbone.layers.1.mixer.experts.%e.up_proj.weight",
     ". backbone.layers.1.mixer.experts.%e.down_proj.weight",
     "ffn.ungated=1;ffn.activation=relu^2;shared.d_ff=10;router.routed_scale=2.5;router.group=none"},
    {"Nemotron-3 Super", "1",
     "{'model_type':'nemotron_h','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_size'"
     ":6,'moe_latent_size':4,'moe_shared_expert_intermediate_size':10,'norm_topk_prob':true,'routed_scaling_factor':"
     "5.0,'mlp_hidden_act':'relu2'}",
     "model.layers.1.mixer.gate.weight[4,8] model.layers.1.mixer.gate.e_score_correction_bias[4] "
     "model.layers.1.mixer.experts.up_proj[4,6,4] model.layers.1.mixer.experts.down_proj[4,4,6] "
     "model.layers.1.mixer.fc1_latent_proj.weight[4,8] model.layers.1.mixer.fc2_latent_proj.weight[8,4] "
     "model.layers.1.mixer.shared_experts.up_proj.weight[10,8] "
     "model.layers.1.mixer.shared_experts.down_proj.weight[8,10]",
     "", ". model.layers.1.mixer.experts.up_proj", ". model.layers.1.mixer.experts.down_proj",
     "latent.d=4;router.routed_scale=5"},
    {"JetMoE-8B", "1",
     "{'model_type':'jetmoe','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':2,'"
     "activation_function':'silu'}",
     M1 "router.layer.weight[4,8] " M1 "input_linear.weight[4,12,8] " M1 "output_linear.weight[4,8,6] " M1
        "bias[8] model.layers.1.self_attention.experts.input_linear.weight[4,8,8] "
        "model.layers.1.self_attention.experts.router.layer.weight[4,8]",
     "a " M1 "input_linear.weight", "b " M1 "input_linear.weight", ". " M1 "output_linear.weight",
     "router.weight_from=softmax of the selected"},
    {"Gemma-4-26B-A4B", "1",
     "{'model_type':'gemma4','text_config':{'model_type':'gemma4_text','hidden_size':8,'intermediate_size':32,'moe_"
     "intermediate_size':6,'num_experts':4,'top_k_experts':2,'enable_moe_block':true,'hidden_activation':'gelu_"
     "pytorch_tanh','rms_norm_eps':1e-6}}",
     "model.language_model.layers.1.router.proj.weight[4,8] model.language_model.layers.1.router.scale[8] "
     "model.language_model.layers.1.router.per_expert_scale[4] "
     "model.language_model.layers.1.experts.gate_up_proj[4,12,8] "
     "model.language_model.layers.1.experts.down_proj[4,8,6] " SHARED("model.language_model.layers.1.mlp.", "32"),
     FUSED_AT("model.language_model.layers.1."),
     "ffn.activation=gelu tanh;router.norm=sum;router.input_norm_eps=1e-06;shared.d_ff=0"},
    {"Step-3", "4",
     "{'model_type':'step3_vl','text_config':{'model_type':'step3_text','hidden_size':8,'moe_num_experts':4,'moe_top_"
     "k':2,'moe_intermediate_size':6,'share_expert_dim':10,'norm_expert_weight':false}}",
     "model.layers.4.moe.gate.weight[4,8] model.layers.4.moe.gate_proj.weight[4,6,8] "
     "model.layers.4.moe.up_proj.weight[4,6,8] model.layers.4.moe.down_proj.weight[4,8,6] " SHARED(
         "model.layers.4.share_expert.", "10"),
     ". model.layers.4.moe.gate_proj.weight", ". model.layers.4.moe.up_proj.weight",
     ". model.layers.4.moe.down_proj.weight", "router.norm=none;router.score=softmax;shared.d_ff=10"},
    {"Step-3.5-Flash", "1",
     "{'model_type':'step3p5','hidden_size':8,'moe_num_experts':4,'moe_top_k':2,'moe_intermediate_size':6,'share_"
     "expert_dim':10,'norm_expert_weight':true,'moe_router_activation':'sigmoid','moe_router_scaling_factor':3.0,'"
     "use_moe_router_bias':true,'swiglu_limits':[0,7.0],'swiglu_limits_shared':[0,16.0]}",
     "model.layers.1.moe.gate.weight[4,8] model.layers.1.moe.router_bias[4] "
     "model.layers.1.moe.gate_proj.weight[4,6,8] model.layers.1.moe.up_proj.weight[4,6,8] "
     "model.layers.1.moe.down_proj.weight[4,8,6] " SHARED("model.layers.1.share_expert.", "10"),
     ". model.layers.1.moe.gate_proj.weight", ". model.layers.1.moe.up_proj.weight",
     ". model.layers.1.moe.down_proj.weight",
     "router.score=sigmoid;router.norm=sum;router.routed_scale=3;ffn.clamp=after;ffn.limit=7;shared.limit=16;shared."
     "clamp=after"},
    {"MiMo-V2-Flash", "1",
     "{'model_type':'mimo_v2_flash','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_"
     "size':6,'n_shared_experts':null,'norm_topk_prob':true,'routed_scaling_factor':null,'scoring_func':'sigmoid','"
     "topk_method':'noaux_tc','n_group':1,'topk_group':1,'moe_layer_freq':[0,1]}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1), PER_AT(M1),
     "router.score=sigmoid;router.norm=sum;router.group=none"},
    {"K-EXAONE", "1",
     "{'model_type':'exaone_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'"
     "num_shared_experts':1,'norm_topk_prob':true,'routed_scaling_factor':2.5,'n_group':1,'topk_group':1,'scoring_"
     "func':'sigmoid'}",
     M1 "gate.weight[4,8] " M1 "e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "router.score=sigmoid;router.routed_scale=2.5"},
    {"A.X-K1", "1",
     "{'model_type':'AXK1','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'n_"
     "shared_experts':1,'norm_topk_prob':true,'routed_scaling_factor':2.5,'n_group':2,'topk_group':1,'scoring_func':'"
     "sigmoid'}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.group=sum of 2 best"},
    {"Solar-Open", "1",
     "{'model_type':'solar_open','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_size'"
     ":6,'n_shared_experts':1,'norm_topk_prob':true,'routed_scaling_factor':1.0,'n_group':1,'topk_group':1}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.score=sigmoid;router.norm=sum"},
    {"LFM2-8B-A1B", "2",
     "{'model_type':'lfm2_moe','hidden_size':8,'intermediate_size':32,'num_experts':4,'num_experts_per_tok':2,'moe_"
     "intermediate_size':6,'norm_topk_prob':true,'use_expert_bias':true,'routed_scaling_factor':1.0}",
     "model.layers.2.feed_forward.gate.weight[4,8] model.layers.2.feed_forward.expert_bias[4] " W123(
         "model.layers.2.feed_forward."),
     W123_AT("model.layers.2.feed_forward."), "router.score=sigmoid;router.norm_eps=1e-06"},
    {"Mistral Large 3", "1",
     "{'model_type':'mistral_large_3','dim':8,'moe':{'num_experts':4,'num_experts_per_tok':2,'expert_hidden_dim':6,'"
     "routed_scale':1.0,'num_shared_experts':1,'num_expert_groups':1,'num_expert_groups_per_tok':1}}",
     "layers.1.gate.weight[4,8] " W123(
         "layers.1.") "layers.1.shared_experts.w1.weight[6,8] layers.1.shared_experts.w3.weight[6,8] "
                      "layers.1.shared_experts.w2.weight[8,6]",
     W123_AT("layers.1."), "router.score=softmax;router.norm=sum;router.group=none;top_k=2"},
    {"Cohere2-MoE, average", "1",
     "{'model_type':'cohere2_moe','hidden_size':8,'intermediate_size':6,'num_experts':4,'num_experts_per_tok':2,'num_"
     "shared_experts':2,'expert_selection_fn':'sigmoid','norm_topk_prob':true,'shared_expert_combination_strategy':'"
     "average'}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_experts.", "12"), PER_AT(M1),
     "router.score=sigmoid;router.norm=sum;ffn.combine_scale=0.5"},
    {"Cohere2-MoE, softmax, sum", "1",
     "{'model_type':'cohere2_moe','hidden_size':8,'intermediate_size':6,'num_experts':4,'num_experts_per_tok':2,'num_"
     "shared_experts':1,'expert_selection_fn':'softmax','norm_topk_prob':true,'shared_expert_combination_strategy':'"
     "sum'}",
     M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_experts.", "6"), PER_AT(M1),
     "router.score=softmax;router.weight_from=softmax of the selected;ffn.combine_scale=0"},
    {"Laguna", "1",
     "{'model_type':'laguna','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'"
     "shared_expert_intermediate_size':10,'norm_topk_prob':true,'moe_routed_scaling_factor':2.5,'moe_router_logit_"
     "softcapping':0.0,'moe_apply_router_weight_on_input':true,'moe_router_use_sigmoid':true}",
     M1 "gate.weight[4,8] " M1 "experts.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_expert.", "10"),
     PER_AT(M1),
     "router.score=sigmoid;router.routed_scale=2.5;ffn.weight_at=input;shared.d_ff=10;shared.gate_kind=none"},
    {"Klear-46B", "1",
     "{'model_type':'Klear','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'n_"
     "shared_experts':1,'norm_topk_prob':true}",
     M1 "gate.weight[4,8] " M1 "expert_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6") M1
     "coefficient.weight[2,8] " M1 "coefficient.bias[2]",
     PER_AT(M1), "router.score=sigmoid;shared.gate_kind=softmax of 2"},
    {"Inkling", "1",
     "{'model_type':'inkling_mm_model','text_config':{'model_type':'inkling_text','hidden_size':8,'moe_intermediate_"
     "size':6,'n_routed_experts':4,'num_experts_per_tok':2,'n_shared_experts':2,'route_scale':8.0,'shared_expert_"
     "sink':true,'gate_activation':'sigmoid','hidden_act':'silu'}}",
     "model.llm.layers.1.mlp.gate.weight[6,8] model.llm.layers.1.mlp.gate.bias[4] "
     "model.llm.layers.1.mlp.gate.global_scale[1] model.llm.layers.1.mlp.experts.w13_weight[4,12,8] "
     "model.llm.layers.1.mlp.experts.w2_weight[4,8,6] "
     "model.llm.layers.1.mlp.shared_experts.shared_w13_weight[2,12,8] "
     "model.llm.layers.1.mlp.shared_experts.shared_w2_weight[2,8,6]",
     "i model.llm.layers.1.mlp.experts.w13_weight", "j model.llm.layers.1.mlp.experts.w13_weight",
     ". model.llm.layers.1.mlp.experts.w2_weight",
     "router.norm=sum with shared;shared.gate_kind=router rows;shared.count=2;shared.d_ff=6;n_experts=4"},
    {"Inkling by newer tools", "1",
     "{'model_type':'inkling_mm_model','text_config':{'model_type':'inkling_text','hidden_size':8,'moe_intermediate_"
     "size':6,'n_routed_experts':4,'num_experts_per_tok':2,'n_shared_experts':2,'route_scale':8.0}}",
     "model.language_model.layers.1.mlp.gate.weight[6,8] "
     "model.language_model.layers.1.mlp.gate.e_score_correction_bias[4] "
     "model.language_model.layers.1.mlp.gate.global_scale[1] "
     "model.language_model.layers.1.mlp.experts.gate_up_proj[4,12,8] "
     "model.language_model.layers.1.mlp.experts.down_proj[4,8,6] "
     "model.language_model.layers.1.mlp.shared_experts.gate_proj[2,6,8] "
     "model.language_model.layers.1.mlp.shared_experts.up_proj[2,6,8] "
     "model.language_model.layers.1.mlp.shared_experts.down_proj[2,8,6]",
     FUSED_AT("model.language_model.layers.1.mlp."), "shared.count=2;shared.d_ff=6"},
    {"InternS1-Pro", "1",
     "{'model_type':'interns1_pro','text_config':{'model_type':'interns1_pro_text','hidden_size':8,'num_experts':4,'"
     "num_experts_per_tok':2,'moe_intermediate_size':6,'norm_topk_prob':true,'router_n_groups':2}}",
     "model.language_model.layers.1.mlp.gate.weight[4,8] " PER("model.language_model.layers.1.mlp."),
     PER_AT("model.language_model.layers.1.mlp."), "router.group=per group;router.n_group=2"},
    {"Llama-4 with a tensor per expert", "1",
     "{'model_type':'llama4','text_config':{'model_type':'llama4_text','hidden_size':8,'intermediate_size':6,"
     "'intermediate_size_mlp':32,'num_local_experts':4,'num_experts_per_tok':1,'interleave_moe_layer_step':2,"
     "'hidden_act':'silu'}}",
     "language_model." F1 "router.weight[4,8] " PER("language_model." F1)
         SHARED("language_model." F1 "shared_expert.", "6"),
     PER_AT("language_model." F1),
     "ffn.weight_at=input;router.score=sigmoid;router.select_on=logit;top_k=1;shared.d_ff=6"},
    {"Pangu-Pro-MoE", "1", /* as many groups as experts per token, weights times router_scale */
     "{'architectures':['PanguProMoEForCausalLM'],'model_type':'PanguProMoE','hidden_size':8,'hidden_act':'silu',"
     "'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'shared_expert_intermediate_size':10}",
     M1 "gate.weight[4,8] " M1 "router_scale:bf16[1,4] " PER(M1) SHARED(M1 "shared_expert.", "10"), PER_AT(M1),
     "router.group=per group;router.n_group=2;router.norm=none;router.score=softmax;shared.d_ff=10;shared.gate_kind="
     "none"},
    {"Pangu-Pro-MoE, the second version", "1",
     "{'architectures':['PanguProMoEV2ForCausalLM'],'model_type':'PanguProMoE','hidden_size':8,'hidden_act':'silu',"
     "'n_routed_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,'n_shared_experts':1,'norm_topk_prob':"
     "true,'routed_scaling_factor':2.5,'router_enable_expert_bias':true}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1) SHARED(M1 "shared_experts.", "6"),
     PER_AT(M1), "router.group=none;router.norm=sum;router.score=sigmoid;router.routed_scale=2.5"},
    {"Pangu-Pro-MoE, the second version by its own name", "1",
     "{'model_type':'PanguProMoEV2','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,"
     "'moe_intermediate_size':6,'norm_topk_prob':true,'routed_scaling_factor':2.5}",
     M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[4] " PER(M1), PER_AT(M1),
     "router.group=none;router.norm=sum;router.score=sigmoid"},
#define GROK "transformer/decoder_layer_3/"
    {"Grok-1, Haiku's names, f32", "3",
     "{'model_type':'grok-1','emb_size':8,'widening_factor':8,'num_experts':4,'num_selected_experts':2}",
     GROK "router/w[8,4] " GROK "moe/linear/w[4,8,6] " GROK "moe/linear_v/w[4,8,6] " GROK
          "moe/linear_1/w[4,6,8] " GROK "rms_norm_2/scale[8]",
     "t " GROK "moe/linear/w", "t " GROK "moe/linear_v/w", "t " GROK "moe/linear_1/w",
     "router.norm=none;router.softcap=0;ffn.activation=gelu tanh;top_k=2"},
#define GROK_DOT "params.transformer.decoder_layer_12."
    {"Grok-1, Haiku's names with dots, bf16", "12",
     "{'model_type':'grok-1','emb_size':8,'num_experts':4,'num_selected_experts':2,'hidden_act':'gelu'}",
     GROK_DOT "router.w[8,4] " GROK_DOT "moe.linear.w:bf16[4,8,6] " GROK_DOT "moe.linear_v.w:bf16[4,8,6] " GROK_DOT
              "moe.linear_1.w:bf16[4,6,8]",
     "t " GROK_DOT "moe.linear.w", "t " GROK_DOT "moe.linear_v.w", "t " GROK_DOT "moe.linear_1.w",
     "router.norm=none;ffn.activation=gelu tanh"},
    {"Grok-1 for transformers", "1",
     "{'architectures':['Grok1ModelForCausalLM'],'model_type':'grok-1','hidden_size':8,'intermediate_size':6,"
     "'num_experts':4,'num_experts_per_tok':2}",
     "model.layers.1.moe_block.gate.weight[4,8] model.layers.1.moe_block.experts.%e.linear.weight[6,8] "
     "model.layers.1.moe_block.experts.%e.linear_v.weight[6,8] "
     "model.layers.1.moe_block.experts.%e.linear_1.weight[8,6]",
     ". model.layers.1.moe_block.experts.%e.linear.weight", ". model.layers.1.moe_block.experts.%e.linear_v.weight",
     ". model.layers.1.moe_block.experts.%e.linear_1.weight", "router.norm=none;ffn.activation=gelu tanh"},
    {"SmallThinker", "1",
     "{'model_type':'smallthinker','hidden_size':8,'moe_num_primary_experts':4,'moe_num_active_primary_experts':2,'"
     "moe_ffn_hidden_size':6,'moe_primary_router_apply_softmax':false,'norm_topk_prob':true}",
     S1 "primary_router.weight[4,8] " S1 "experts.%e.gate.weight[6,8] " S1 "experts.%e.up.weight[6,8] " S1
        "experts.%e.down.weight[8,6]",
     ". " S1 "experts.%e.gate.weight", ". " S1 "experts.%e.up.weight", ". " S1 "experts.%e.down.weight",
     "ffn.activation=relu;router.score=sigmoid;router.norm=sum"},
    {"Aria", "1",
     "{'model_type':'aria','text_config':{'model_type':'aria_text','hidden_size':8,'intermediate_size':6,'moe_num_"
     "experts':4,'moe_topk':2,'moe_num_shared_experts':2}}",
     "language_model." M1 "router.weight[4,8] language_model." M1 "experts.fc1.weight[4,8,12] language_model." M1
     "experts.fc2.weight[4,6,8] " SHARED("language_model." M1 "shared_experts.", "12"),
     "A language_model." M1 "experts.fc1.weight", "B language_model." M1 "experts.fc1.weight",
     "t language_model." M1 "experts.fc2.weight", "router.norm=sum;shared.d_ff=12"},
    {"Mellum", "1",
     "{'model_type':'mellum','hidden_size':8,'num_local_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':6,"
     "'norm_topk_prob':true}",
     M1 "gate.weight[4,8] " PER(M1), PER_AT(M1), "router.score=softmax;router.norm=sum"},
    {"LLaDA-MoE under its first name", "1",
     "{'architectures':['LLaDAMoEModelLM'],'model_type':'llada','hidden_size':8,'num_experts':4,'num_experts_per_tok'"
     ":2,'expert_"
     "intermediate_size':6,'norm_topk_prob':null,'routed_scaling_factor':null,'moe_router_score_function':'softmax'}",
     M1 "gate.weight[4,8] " PER(M1), PER_AT(M1), "router.norm=none;router.score=softmax"},
    {"Mixtral as first released", "1",
     "{'dim':8,'n_layers':2,'hidden_dim':6,'moe':{'num_experts_per_tok':2,'num_experts':4}}",
     "layers.1.feed_forward.gate.weight[4,8] " W123("layers.1.feed_forward."), W123_AT("layers.1.feed_forward."),
     "router.norm=sum;router.score=softmax;top_k=2"},
    {"gpt-oss as first released, its own config", "1",
     "{'num_hidden_layers':2,'num_experts':4,'experts_per_token':2,'hidden_size':8,'intermediate_size':6,'swiglu_"
     "limit':7.0}",
     "block.1.mlp.gate.weight[4,8] block.1.mlp.gate.bias[4] block.1.mlp.mlp1_weight:bf16[4,12,8] "
     "block.1.mlp.mlp1_bias:bf16[4,12] block.1.mlp.mlp2_weight:bf16[4,8,6] block.1.mlp.mlp2_bias:bf16[4,8]",
     "i block.1.mlp.mlp1_weight", "j block.1.mlp.mlp1_weight", ". block.1.mlp.mlp2_weight",
     "ffn.activation=oai;ffn.limit=7"},
    {"SmallThinker, router late", "1",
     "{'model_type':'smallthinker','hidden_size':8,'moe_num_primary_experts':4,'moe_num_active_primary_experts':2,'"
     "moe_ffn_hidden_size':6,'moe_primary_router_apply_softmax':true,'moe_enable_early_router':false,'norm_topk_prob'"
     ":true}",
     S1 "primary_router.weight[4,8] " S1 "experts.%e.gate.weight[6,8] " S1 "experts.%e.up.weight[6,8] " S1
        "experts.%e.down.weight[8,6]",
     ". " S1 "experts.%e.gate.weight", ". " S1 "experts.%e.up.weight", ". " S1 "experts.%e.down.weight",
     "router.score=softmax"},
    {"LLaDA-MoE", "1",
     "{'model_type':'llada_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'expert_intermediate_size':"
     "6}",
     M1 "gate.weight[4,8] " PER(M1), PER_AT(M1), "router.norm=none"},
    {"nomic-bert-moe", "1",
     "{'model_type':'nomic_bert','n_embd':8,'n_inner':6,'num_experts':4,'moe_top_k':2,'activation_function':'gelu'}",
     "encoder.layers.1.mlp.router.layer.weight[4,8] encoder.layers.1.mlp.experts.mlp.w1[24,8] "
     "encoder.layers.1.mlp.experts.mlp.w2[24,8] encoder.layers.1.mlp.experts.bias[8]",
     "", "f encoder.layers.1.mlp.experts.mlp.w1", "g encoder.layers.1.mlp.experts.mlp.w2",
     "ffn.ungated=1;ffn.activation=gelu erf;router.norm=none"},
};

/* ---- A checkpoint from its description ---- */

typedef struct built {
    char names[256][160];
    ckpt_out out[256];
    float *data[256];
    size_t n;
} built;

/* What element i of tensor `name` holds: small numbers that bf16 holds exactly. */
static float value_of(const char *name, uint64_t i) {
    uint32_t h = 2166136261u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 16777619u;
    h = (h ^ (uint32_t)i) * 16777619u;
    h ^= h >> 15;
    return ((float)(h >> 8 & 255) - 127.5f) / 128.0f;
}

static void fill(ckpt_out *o, void *data) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < o->n_dims; i++) n *= o->dims[i];
    uint8_t *to = (uint8_t *)data;
    for (uint64_t i = 0; i < n; i++) {
        float v = value_of(o->name, i);
        uint32_t bits;
        memcpy(&bits, &v, 4);
        if (o->type == CKPT_F32) ckpt_store_f32(to + 4 * i, v);
        else if (o->type == CKPT_BF16) to[2 * i] = (uint8_t)(bits >> 16), to[2 * i + 1] = (uint8_t)(bits >> 24);
        else ckpt_store_u64(to + 8 * i, i % E); /* a table of experts */
    }
    o->data = data;
}

static void add_tensor(built *b, const char *name, ckpt_dtype type, const char *dims) {
    if (b->n == 256) return;
    ckpt_out *o = &b->out[b->n];
    snprintf(b->names[b->n], sizeof *b->names, "%s", name);
    memset(o, 0, sizeof *o);
    o->name = b->names[b->n], o->type = type;
    uint64_t n = 8;
    for (char *end; *dims && *dims != ']'; dims = *end == ',' ? end + 1 : end)
        n *= o->dims[o->n_dims++] = strtoul(dims, &end, 10);
    b->data[b->n] = (float *)calloc(1, n + 64);
    fill(o, b->data[b->n++]);
}

/* Returns if the name has an expert's number in it. */
static int expert_name(const char *name, uint32_t e, char *to, size_t size) {
    const char *at = strchr(name, '%');
    if (at) snprintf(to, size, "%.*s%u%.100s", (int)(at - name), name, (unsigned)(at[1] == 'v' ? e + E : e), at + 2);
    else snprintf(to, size, "%s", name);
    return at != NULL;
}

static void build(built *b, const char *text) {
    b->n = 0;
    while (*text) {
        char word[200], name[160], one[160];
        int n = (int)strcspn(text, " ");
        snprintf(word, sizeof word, "%.*s", n, text);
        text += n, text += *text == ' ';
        if (!*word) continue;
        char *dims = strchr(word, '['), *type = strchr(word, ':');
        if (!dims) continue;
        ckpt_dtype t = !type ? CKPT_F32 : !strncmp(type, ":bf16", 5) ? CKPT_BF16 : CKPT_I64;
        snprintf(name, sizeof name, "%.*s", (int)((type ? type : dims) - word), word);
        for (uint32_t e = 0; e < (strchr(name, '%') ? E : 1); e++) {
            expert_name(name, e, one, sizeof one);
            add_tensor(b, one, t, dims + 1);
        }
    }
}

static int write_config(const char *text) { /* with ' for " */
    FILE *f = fopen(TMP "/config.json", "wb");
    for (; f && *text; text++) putc(*text == '\'' ? '"' : *text, f);
    return f && !fclose(f);
}

/* ---- Checks ---- */

/* Where (e, r, k) of a rows x k matrix lies under the layout. */
static uint64_t place(char layout, int per_expert, uint64_t e, uint64_t r, uint64_t k, uint64_t rows,
                      uint64_t width) {
    uint64_t from = per_expert ? 0 : e;
    switch (layout) {
    case 'a': return (from * 2 * rows + r) * width + k;
    case 'b': return (from * 2 * rows + rows + r) * width + k;
    case 'i': return (from * 2 * rows + 2 * r) * width + k;
    case 'j': return (from * 2 * rows + 2 * r + 1) * width + k;
    case 't': return (from * width + k) * rows + r;
    case 'A': return (from * width + k) * 2 * rows + r;
    case 'B': return (from * width + k) * 2 * rows + rows + r;
    case 'I': return (from * width + k) * 2 * rows + 2 * r;
    case 'J': return (from * width + k) * 2 * rows + 2 * r + 1;
    case 'g': return (from * width + k) * rows + r; /* [E * k, rows] */
    default: return (from * rows + r) * width + k;  /* also f: [E * rows, k] */
    }
}

static void check_matrix(const char *who, const char *role, const moe_matrix *m, const char *where, uint32_t rows,
                         uint32_t k) {
    float line[64];
    int wrong = 0;
    if (!*where) {
        check(!m->format, who, "%s: there is one", role);
        return;
    }
    for (uint32_t e = 0; e < E && !wrong; e++)
        for (uint32_t r = 0; r < rows && !wrong; r++) {
            char name[160];
            int each = expert_name(where + 2, e, name, sizeof name);
            wrong = moe_dequantize(m, e, E, rows, k, r, 1, line) != MOE_OK;
            for (uint32_t i = 0; i < k && !wrong; i++) {
                float want = value_of(name, place(where[0], each, e, r, i, rows, k));
                wrong = !(line[i] >= want && line[i] <= want);
            }
        }
    check(!wrong, who, "%s does not come from %s", role, where);
}

static void check_knobs(const char *who, const ckpt_layer_info *info, const char *knobs) {
    while (*knobs) {
        char text[96], *equal;
        int n = (int)strcspn(knobs, ";"), found = 0;
        snprintf(text, sizeof text, "%.*s", n, knobs);
        knobs += n, knobs += *knobs == ';';
        if (!(equal = strchr(text, '='))) continue;
        *equal++ = 0;
        for (uint32_t i = 0; i < info->n_knobs && !found; i++) {
            if (strcmp(info->knobs[i].field, text)) continue;
            found = 1;
            check(!strcmp(info->knobs[i].value, equal), who, "%s is %s (%s), not %s", text, info->knobs[i].value,
                  info->knobs[i].origin, equal);
        }
        if (!found)
            check(!strcmp(equal, "0"), who, "%s is not listed; %s expected", text,
                  equal); /* fields at 0 are left out */
    }
}

static void check_runs(const char *who, const moe_desc *d, const ckpt_layer_info *info) {
    enum { T = 3 };
    moe_layer layer;
    moe_error e;
    float x[T * D], y[T * D], other[T * D];
    int32_t tokens[T] = {0, 3, 5};
    memset(&e, 0, sizeof e);
    if (!check(!moe_layer_init(&layer, d, &e), who, "%s: %s (%u, wanted %u)", e.field ? e.field : "",
               moe_status_text(e.status), (unsigned)e.got, (unsigned)e.want))
        return;
    moe_io io;
    memset(&io, 0, sizeof io);
    for (int i = 0; i < T * D; i++) x[i] = value_of("x", (uint64_t)i), other[i] = value_of("router", (uint64_t)i);
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = T;
    if (info->needs_router_input) io.router_x = other;
    if (info->needs_token_ids) io.token_ids = tokens;
    io.workspace_size = moe_workspace_size(&layer, T, 1), io.workspace = malloc(io.workspace_size);
    moe_status s = moe_forward(&layer, &io);
    check(!s, who, "forward: %s", moe_status_text(s));
    size_t turned = ckpt_turn_size(d);
    if (turned) { /* stored [in, out]: turned round, the same bits */
        float again[T * D];
        moe_desc rows = *d;
        void *to = malloc(turned);
        ckpt_turn(&rows, to);
        io.y = again;
        check(!ckpt_turn_size(&rows) && !moe_layer_init(&layer, &rows, &e), who, "turned");
        check(!moe_forward(&layer, &io) && !memcmp(y, again, sizeof y), who, "turned round, the output differs");
        free(to);
    }
    free(io.workspace);
    for (int i = 0; i < T * D && !s; i++)
        if (!(fabsf(y[i]) < 1e4f)) {
            check(0, who, "output %d is %g", i, (double)y[i]);
            break;
        }
}

static void check_layer(const char *name, const ckpt *c, const family *f) {
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc d;
    char err[CKPT_ERR];
    if (!check(!ckpt_layer_list(c, &layers, err), name, "%s", err)) return;
    const ckpt_layer *l = ckpt_layer_find(&layers, f->layer);
    size_t banks = strstr(f->config, "_vl_moe'") || strstr(f->config, "_moe_vl'") ? 2 : 1;
    if (strstr(f->config, "qwen3_vl")) banks = 1;
    if (check(layers.n == banks && l, name, "%zu layers, %s%s", layers.n, l ? "" : "not ", f->layer) &&
        check(!ckpt_layer_desc(c, l, &d, &info, err), name, "%s", err)) {
        uint32_t in = d.latent.d ? d.latent.d : d.d_model;
        if (check(d.d_model == D && d.d_ff == FF && d.n_experts == E, name, "sizes %u %u %u", (unsigned)d.d_model,
                  (unsigned)d.d_ff, (unsigned)d.n_experts)) {
            check_matrix(name, "gate", &d.gate, f->gate, FF, in);
            check_matrix(name, "up", &d.up, f->up, FF, in);
            check_matrix(name, "down", &d.down, f->down, in, FF);
            check_knobs(name, &info, f->knobs);
            check_runs(name, &d, &info);
        }
        ckpt_layer_free(&info);
    }
    ckpt_layers_free(&layers);
}

static void test_families(void) {
    static built b;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const family *f = &families[i];
        char err[CKPT_ERR] = "";
        ckpt c;
        int before = failed;
        build(&b, f->tensors);
        int ok = !ckpt_write(TMP "/model.safetensors", b.out, b.n, NULL, err) && write_config(f->config);
        if (check(ok, f->name, "writing: %s", err) && check(!ckpt_open(&c, TMP, err), f->name, "%s", err)) {
            check_layer(f->name, &c, f);
            ckpt_close(&c);
        }
        for (size_t j = 0; j < b.n; j++) free(b.data[j]);
        if (failed == before) printf("ok   %s\n", f->name);
    }
}

/* ---- GGUF: the keys and tensors of single architectures ---- */

typedef struct bytes {
    uint8_t p[200000];
    size_t n;
} bytes;
static void put(bytes *b, const void *p, size_t n) {
    if (b->n + n <= sizeof b->p) memcpy(b->p + b->n, p, n), b->n += n;
}
static void put_u32(bytes *b, uint32_t v) {
    uint8_t t[4];
    ckpt_store_u32(t, v), put(b, t, 4);
}
static void put_u64(bytes *b, uint64_t v) {
    uint8_t t[8];
    ckpt_store_u64(t, v), put(b, t, 8);
}
static void put_string(bytes *b, const char *s) { put_u64(b, strlen(s)), put(b, s, strlen(s)); }

/* keys: "name=value" with a value that begins with a digit and has a dot: f32, without: u32, "true": bool, else a
   string. */
static size_t put_keys(bytes *b, const char *arch, const char *keys) {
    size_t count = 1;
    put_string(b, "general.architecture"), put_u32(b, 8), put_string(b, arch);
    for (; *keys; count++) {
        char text[96], name[128], *v;
        int n = (int)strcspn(keys, " ");
        snprintf(text, sizeof text, "%.*s", n, keys);
        keys += n, keys += *keys == ' ';
        v = strchr(text, '=');
        *v++ = 0;
        snprintf(name, sizeof name, "%s.%s", arch, text);
        put_string(b, name);
        if (!strcmp(v, "true")) put_u32(b, 7), put(b, "\1", 1);
        else if (strchr(v, '.')) {
            uint8_t t[4];
            ckpt_store_f32(t, strtof(v, NULL)), put_u32(b, 6), put(b, t, 4);
        } else put_u32(b, 4), put_u32(b, (uint32_t)strtoul(v, NULL, 10));
    }
    return count;
}

static size_t make_gguf(bytes *out, const built *b, const char *arch, const char *keys) {
    static bytes kv;
    uint64_t at = 0;
    kv.n = out->n = 0;
    size_t n_keys = put_keys(&kv, arch, keys);
    put(out, "GGUF", 4), put_u32(out, 3), put_u64(out, b->n), put_u64(out, n_keys), put(out, kv.p, kv.n);
    for (size_t i = 0; i < b->n; i++) {
        const ckpt_out *o = &b->out[i];
        uint64_t n = 1;
        put_string(out, o->name), put_u32(out, o->n_dims);
        for (uint32_t j = o->n_dims; j--;) put_u64(out, o->dims[j]), n *= o->dims[j];
        put_u32(out, o->type == CKPT_F32 ? 0 : o->type == CKPT_BF16 ? 30 : 27), put_u64(out, at);
        at += (n * (o->type == CKPT_F32 ? 4 : o->type == CKPT_BF16 ? 2 : 8) + 31) / 32 * 32;
    }
    while (out->n % 32) put(out, "", 1);
    for (size_t i = 0; i < b->n; i++) {
        const ckpt_out *o = &b->out[i];
        uint64_t n = 1;
        for (uint32_t j = 0; j < o->n_dims; j++) n *= o->dims[j];
        put(out, o->data, (size_t)n * (o->type == CKPT_F32 ? 4 : o->type == CKPT_BF16 ? 2 : 8));
        while (out->n % 32) put(out, "", 1);
    }
    return out->n;
}

#define G1          "blk.1.ffn_"
#define G_EXPS      G1 "gate_exps.weight[4,6,8] " G1 "up_exps.weight[4,6,8] " G1 "down_exps.weight[4,8,6] "
#define G_AT        ". " G1 "gate_exps.weight", ". " G1 "up_exps.weight", ". " G1 "down_exps.weight"
#define G_SHARED(n) G1 "gate_shexp.weight[" n ",8] " G1 "up_shexp.weight[" n ",8] " G1 "down_shexp.weight[8," n "] "
#define G_SIZES     "embedding_length=8 expert_count=4 expert_used_count=2 expert_feed_forward_length=6 "

static const family ggufs[] = {
    /* name is the architecture, config the keys */
    {"llama", "1",
     /* one tensor per expert, as of old */
     "embedding_length=8 expert_count=4 expert_used_count=2 feed_forward_length=6",
     G1 "gate_inp.weight[4,8] " G1 "gate.%e.weight[6,8] " G1 "up.%e.weight[6,8] " G1 "down.%e.weight[8,6]",
     ". " G1 "gate.%e.weight", ". " G1 "up.%e.weight", ". " G1 "down.%e.weight", "router.norm=sum;d_ff=6"},
    {"deepseek2", "1", G_SIZES "expert_group_count=2 expert_group_used_count=1 expert_weights_scale=16.0", /* V2 */
     G1 "gate_inp.weight[4,8] " G_EXPS G_SHARED("12"), G_AT,
     "router.score=softmax;router.group=max;router.n_group=2;router.routed_scale=16;router.norm=none"},
    {"deepseek2", "1",
     G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_weights_scale=2.827", /* Kimi-K2: no groups */
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G_EXPS G_SHARED("6"), G_AT,
     "router.score=sigmoid;router.group=none;router.routed_scale=2.827;router.norm=sum;router.norm_eps=1e-20"},
    {"deepseek2", "1",
     G_SIZES "expert_weights_norm=true expert_weights_scale=1.8", /* GLM-4.7-Flash without its gating key */
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G_EXPS G_SHARED("6"), G_AT,
     "router.score=sigmoid;router.routed_scale=1.8"},
    {"glm4moe", "1", G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_weights_scale=0.0", /* 0 means 1 */
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G_EXPS G_SHARED("6"), G_AT,
     "router.score=sigmoid;router.norm=sum;router.routed_scale=0"},
    {"granitehybrid", "1", G_SIZES "expert_gating_func=3", G1 "gate_inp.weight[4,8] " G_EXPS G_SHARED("10"), G_AT,
     "router.weight_from=softmax of the selected;shared.d_ff=10"},
    {"gemma4", "1", G_SIZES "attention.layer_norm_rms_epsilon=0.000001",
     G1 "gate_inp.weight[4,8] " G1 "gate_inp.scale[8] " G1 "gate_up_exps.weight[4,12,8] " G1
        "down_exps.weight[4,8,6] " G1 "down_exps.scale[4] " G1 "gate.weight[32,8] " G1 "up.weight[32,8] " G1
        "down.weight[8,32]",
     "a " G1 "gate_up_exps.weight", "b " G1 "gate_up_exps.weight", "", "router.norm=sum;ffn.activation=gelu tanh"},
    {"nemotron_h_moe", "1",
     G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_weights_scale=5.0 moe_latent_size=4",
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G1 "up_exps.weight[4,6,4] " G1 "down_exps.weight[4,4,6] " G1
        "latent_down.weight[4,8] " G1 "latent_up.weight[8,4] " G1 "up_shexp.weight[10,8] " G1
        "down_shexp.weight[8,10]",
     "", ". " G1 "up_exps.weight", ". " G1 "down_exps.weight",
     "latent.d=4;ffn.activation=relu^2;ffn.ungated=1;shared.d_ff=10"},
    {"kimi-k3", "1",
     G_SIZES "expert_gating_func=2 expert_weights_norm=true activation.situ_beta=4.0 "
             "activation.situ_linear_beta=25.0 attention.layer_norm_rms_epsilon=0.00001",
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G1 "gate_exps.weight[4,6,4] " G1 "up_exps.weight[4,6,4] " G1
        "down_exps.weight[4,4,6] " G1 "routed_down.weight[4,8] " G1 "routed_up.weight[8,4] " G1
        "routed_norm.weight[4] " G_SHARED("12"),
     G_AT, "ffn.activation=situ;latent.d=4;latent.norm_eps=1e-05"},
    {"deepseek4", "1", G_SIZES "expert_gating_func=4 expert_weights_norm=true expert_weights_scale=1.5",
     G1 "gate_inp.weight[4,8] " G1 "gate_tid2eid.weight:i64[16,2] " G_EXPS G_SHARED("6"), G_AT,
     "router.pick=table;router.score=sqrt(softplus);ffn.limit=10"},
    {"grok", "1", G_SIZES "router_logit_softcapping=30.0", /* Grok-2: its dense MLP is a shared expert */
     G1 "gate_inp.weight[4,8] " G_EXPS G1 "gate.weight[16,8] " G1 "up.weight[16,8] " G1 "down.weight[8,16]", G_AT,
     "router.softcap=30;shared.d_ff=16;ffn.combine_scale=0.7071068;router.norm=none;ffn.activation=gelu tanh"},
    {"grok", "1", "embedding_length=8 expert_count=4 expert_used_count=2 feed_forward_length=6", /* Grok-1 */
     G1 "gate_inp.weight[4,8] " G_EXPS, G_AT, "router.softcap=0;shared.d_ff=0;ffn.combine_scale=0;router.norm=none"},
    {"cohere2moe", "1", G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_shared_count=2",
     G1 "gate_inp.weight[4,8] " G_EXPS G_SHARED("12"), G_AT,
     "router.score=sigmoid;ffn.combine_scale=0.5;shared.d_ff=12"},
    {"deepseek32", "1",
     G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_weights_scale=2.5 expert_group_count=2 "
             "expert_group_used_count=1",
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G_EXPS G_SHARED("6"), G_AT,
     "router.score=sigmoid;router.group=sum of 2 best;router.n_group=2;router.routed_scale=2.5"},
    {"bailingmoe3", "1",
     G_SIZES "expert_gating_func=2 expert_weights_norm=true expert_weights_scale=2.5 swiglu_clamp_exp=4.0 "
             "swiglu_clamp_shexp=5.0",
     G1 "gate_inp.weight[4,8] blk.1.exp_probs_b.bias[4] " G_EXPS G_SHARED("6"), G_AT,
     "router.score=sigmoid;router.group=none;ffn.clamp=after;ffn.limit=4;shared.limit=5"},
    {"qwen2moe", "1", G_SIZES "expert_shared_feed_forward_length=10",
     G1 "gate_inp.weight[4,8] " G_EXPS G_SHARED("10") G1 "gate_inp_shexp.weight[8]", G_AT,
     "router.norm=none;shared.gate_kind=sigmoid"},
};

static void test_ggufs(void) {
    static built b;
    static bytes file;
    for (size_t i = 0; i < sizeof ggufs / sizeof *ggufs; i++) {
        family f = ggufs[i];
        char err[CKPT_ERR] = "", label[64];
        ckpt c;
        int before = failed;
        snprintf(label, sizeof label, "GGUF %s (%zu)", f.name, i);
        build(&b, f.tensors);
        ckpt_file in = {"test.gguf", file.p, make_gguf(&file, &b, f.name, f.config)};
        if (check(!ckpt_open_memory(&c, &in, 1, NULL, err), label, "%s", err)) {
            ckpt_layers layers;
            ckpt_layer_info info;
            moe_desc d;
            if (*f.down) check_layer(label, &c, &f);
            else if (check(!ckpt_layer_list(&c, &layers, err) && layers.n == 1 &&
                               !ckpt_layer_desc(&c, layers.items, &d, &info, err),
                           label, "%s", err)) {
                check_matrix(label, "gate", &d.gate, f.gate, FF,
                             D); /* down has a scale per expert: checked by hand */
                check_matrix(label, "up", &d.up, f.up, FF, D);
                float line[FF];
                check(!moe_dequantize(&d.down, 2, E, D, FF, 3, 1, line), label, "down");
                float want = value_of(G1 "down_exps.weight", (2 * D + 3) * FF + 1), scale;
                check(fabsf(line[1] - want) <= 1e-6f, label, "down is %g, not %g", (double)line[1], (double)want);
                memcpy(&scale, (const char *)d.router.expert_scale.data + 8, 4);
                check(d.router.expert_scale.type == MOE_TYPE_F32 && !d.down.scale2.type &&
                          scale >= value_of(G1 "down_exps.scale", 2) && scale <= value_of(G1 "down_exps.scale", 2),
                      label, "down's scale is the router's");
                check(info.needs_router_input, label, "the router reads something else");
                check_knobs(label, &info, f.knobs);
                check_runs(label, &d, &info);
                ckpt_layer_free(&info);
                ckpt_layers_free(&layers);
            }
            ckpt_close(&c);
        }
        for (size_t j = 0; j < b.n; j++) free(b.data[j]);
        if (failed == before) printf("ok   %s\n", label);
    }
}

/* ---- Turning weights of 2 and 4 bytes into rows ---- */

static void test_turn(void) {
    enum { K = 130, R = 70, N = 2 };
    static float before[N * R * K], after[N * R * K];
    static uint8_t stored[N * 2 * R * K * 4], turned[N * R * K * 4];
    for (uint32_t i = 0; i < sizeof stored; i++) stored[i] = (uint8_t)(i * 2654435761u >> 24 & 0x3F);
    for (uint32_t item = 2; item <= 4; item += 2)
        for (uint32_t split = 1; split <= 2; split++) { /* 2: every other column */
            moe_desc d;
            memset(&d, 0, sizeof d);
            d.d_model = K, d.d_ff = R, d.n_experts = N;
            d.up.format = item == 2 ? MOE_FORMAT_BF16 : MOE_FORMAT_F32;
            d.up.data = stored, d.up.offset = (split - 1) * item, d.up.row_stride = split * item;
            d.up.k_stride = split * R * item, d.up.expert_stride = split * R * K * item;
            for (uint32_t e = 0; e < N; e++) moe_dequantize(&d.up, e, N, R, K, 0, R, before + e * R * K);
            if (!check(ckpt_turn_size(&d) == N * R * K * item, "turn", "size %zu", ckpt_turn_size(&d))) continue;
            ckpt_turn(&d, turned);
            for (uint32_t e = 0; e < N; e++) moe_dequantize(&d.up, e, N, R, K, 0, R, after + e * R * K);
            check(!d.up.k_stride && !memcmp(before, after, sizeof before), "turn", "%u bytes, every %u columns",
                  (unsigned)item, (unsigned)split);
        }
}

/* ---- Fused stacks in fp8, as newer tools write them: scale grids are cut like the rows ---- */

static void test_fused_fp8(uint32_t ff) {
    char name[64], config[256], err[CKPT_ERR] = "";
    uint32_t blocks = (2 * ff + 127) / 128;
    uint8_t *codes = (uint8_t *)malloc((size_t)E * 2 * ff * D);
    float up[E * 4], down[E], router[E * D], line[D];
    snprintf(name, sizeof name, "fused fp8, width %" PRIu32, ff);
    snprintf(config, sizeof config,
             "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,"
             "'quantization_config':{'quant_method':'fp8','weight_block_size':[128,128]}}");
    for (size_t i = 0; i < (size_t)E * 2 * ff * D; i++) codes[i] = (uint8_t)(0x30 + i % 16); /* 0.5 .. 1.875 */
    for (uint32_t i = 0; i < E * blocks; i++) ckpt_store_f32(&up[i], (float)(i + 1));
    for (uint32_t i = 0; i < E; i++) ckpt_store_f32(&down[i], 1.0f);
    for (uint32_t i = 0; i < E * D; i++) ckpt_store_f32(&router[i], value_of("router", i));
    ckpt_out out[] = {{M1 "gate.weight", CKPT_F32, 2, {E, D}, router},
                      {M1 "experts.gate_up_proj", CKPT_F8_E4M3, 3, {E, 2 * ff, D}, codes},
                      {M1 "experts.gate_up_proj_scale_inv", CKPT_F32, 3, {E, blocks, 1}, up},
                      {M1 "experts.down_proj", CKPT_F8_E4M3, 3, {E, D, ff}, codes},
                      {M1 "experts.down_proj_scale_inv", CKPT_F32, 3, {E, 1, 1}, down}};
    ckpt c;
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc d;
    int ok = !ckpt_write(TMP "/model.safetensors", out, 5, NULL, err) && write_config(config) &&
             !ckpt_open(&c, TMP, err) && !ckpt_layer_list(&c, &layers, err);
    if (check(ok && layers.n == 1, name, "%s", err) &&
        check(!ckpt_layer_desc(&c, layers.items, &d, &info, err), name, "%s", err)) {
        const moe_matrix *m[2] = {&d.gate, &d.up};
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t e = 0; e < E; e++) {
                uint32_t r = ff - 1, row = half * ff + r, i = 3;
                moe_dequantize(m[half], e, E, ff, D, r, 1, line);
                uint32_t code = 0x30 + ((e * 2 * ff + row) * D + i) % 16;
                float want =
                    (1 + (float)(code & 7) / 8) * (code & 8 ? 1.0f : 0.5f) * (float)(e * blocks + row / 128 + 1);
                check(fabsf(line[i] - want) <= 0, name, "expert %u, row %u: %g, not %g", (unsigned)e, (unsigned)row,
                      (double)line[i], (double)want);
            }
        check_runs(name, &d, &info);
        ckpt_layer_free(&info);
    }
    if (ok) ckpt_layers_free(&layers), ckpt_close(&c);
    free(codes);
}

/* ---- Pangu-Pro's block, from its definition in double ---- */

static double silu(double v) { return v / (1 + exp(-v)); }

/* y += weight * an FFN of the tensors PREFIX gate_proj, up_proj, down_proj */
static void add_ffn(const char *prefix, uint32_t ff, double weight, const float *x, double *y) {
    char name[3][160];
    for (int i = 0; i < 3; i++)
        snprintf(name[i], sizeof *name, "%s%s_proj.weight", prefix, i == 0 ? "gate" : i == 1 ? "up" : "down");
    for (uint32_t r = 0; r < ff; r++) {
        double g = 0, u = 0;
        for (uint32_t i = 0; i < D; i++)
            g += (double)x[i] * (double)value_of(name[0], r * D + i),
                u += (double)x[i] * (double)value_of(name[1], r * D + i);
        for (uint32_t o = 0; o < D; o++) y[o] += weight * silu(g) * u * (double)value_of(name[2], o * ff + r);
    }
}

static void test_pangu(void) {
    static built b;
    const char *name = "Pangu-Pro-MoE in double";
    const family *f = families;
    char err[CKPT_ERR] = "", prefix[160];
    float x[8 * D], y[8 * D];
    ckpt c;
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc d;
    moe_layer layer;
    moe_error e;
    moe_io io;
    while (strcmp(f->name, "Pangu-Pro-MoE")) f++;
    build(&b, f->tensors);
    int ok = !ckpt_write(TMP "/model.safetensors", b.out, b.n, NULL, err) && write_config(f->config) &&
             !ckpt_open(&c, TMP, err) && !ckpt_layer_list(&c, &layers, err) &&
             !ckpt_layer_desc(&c, layers.items, &d, &info, err);
    for (size_t j = 0; j < b.n; j++) free(b.data[j]);
    if (!check(ok, name, "%s", err)) return;
    memset(&io, 0, sizeof io);
    d.compute = MOE_COMPUTE_F32;
    for (int i = 0; i < 8 * D; i++) x[i] = value_of("pangu", (uint64_t)i);
    check(!moe_layer_init(&layer, &d, &e), name, "init");
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = 8;
    io.workspace_size = moe_workspace_size(&layer, 8, 1), io.workspace = malloc(io.workspace_size);
    check(!moe_forward(&layer, &io), name, "forward");
    free(io.workspace);
    for (uint32_t t = 0; t < 8; t++) {
        double p[E], sum = 0, want[D] = {0};
        for (uint32_t i = 0; i < E; i++) {
            double l = 0;
            for (uint32_t k = 0; k < D; k++)
                l += (double)x[t * D + k] * (double)value_of(M1 "gate.weight", i * D + k);
            sum += p[i] = exp(l);
        }
        for (uint32_t g = 0; g < E; g += E / 2) { /* two groups, the best of each */
            uint32_t best = p[g + 1] > p[g] ? g + 1 : g;
            snprintf(prefix, sizeof prefix, M1 "experts.%u.", (unsigned)best);
            add_ffn(prefix, FF, p[best] / sum * (double)value_of(M1 "router_scale", best), x + t * D, want);
        }
        add_ffn(M1 "shared_expert.", 10, 1, x + t * D, want);
        for (uint32_t i = 0; i < D; i++)
            check(fabs((double)y[t * D + i] - want[i]) < 1e-5, name, "token %u: %g, not %g", (unsigned)t,
                  (double)y[t * D + i], want[i]);
    }
    ckpt_layer_free(&info);
    ckpt_layers_free(&layers);
    ckpt_close(&c);
}

/* ---- Stacks of 8 and 4 bits stored [in, out]: every weight, and the layer in double ---- */

enum { ID = 64, IF = 96, IT = 6 }; /* d_model, the largest d_ff, tokens */

typedef struct in_out {
    const char *name, *layer, *config, *router, *gate, *up, *down; /* stems; gate "": up is fused */
    const char *suffix, *scale, *scale2;                           /* scale2: one number for the stack */
    ckpt_dtype weight_type, scale_type;
    uint32_t ff, up_group, down_group; /* groups: inputs under one scale; 0: one for the stack */
    int column;                        /* down's scales are [E,out,1] */
    const char *says;                  /* refused so */
} in_out;
#define LLAMA4                                                                                                       \
    "{'model_type':'llama4','text_config':{'model_type':'llama4_text','hidden_size':64,"                             \
    "'num_local_experts':4,'num_experts_per_tok':1,'hidden_act':'silu'}"
#define L4 "language_model.model.layers.3.feed_forward."
static const in_out in_outs[] = {
    {"Llama-4 by fbgemm", "3", LLAMA4 ",'quantization_config':{'quant_method':'fbgemm_fp8'}}", L4 "router.weight", "",
     L4 "experts.gate_up_proj", L4 "experts.down_proj", "", "_scale", NULL, CKPT_F8_E4M3, CKPT_F32, IF, ID, IF, 1,
     NULL},
    {"Llama-4 in fp8 by modelopt", "3", LLAMA4 ",'quantization_config':{'quant_algo':'FP8'}}", L4 "router.weight", "",
     L4 "experts.gate_up_proj", L4 "experts.down_proj", "", "_weight_scale", NULL, CKPT_F8_E4M3, CKPT_F32, IF, 0, 0,
     0, NULL},
    {"Llama-4 in NVFP4 by modelopt", "3", LLAMA4 ",'quantization_config':{'quant_algo':'NVFP4','group_size':16}}",
     L4 "router.weight", "", L4 "experts.gate_up_proj", L4 "experts.down_proj", "", "_weight_scale",
     "_weight_scale_2", CKPT_U8, CKPT_F8_E4M3, IF, 16, 16, 0, NULL},
    {"Llama-4's layout in MXFP4", "3", LLAMA4 "}", L4 "router.weight", "", L4 "experts.gate_up_proj",
     L4 "experts.down_proj", "", "_scale", NULL, CKPT_U8, CKPT_U8, IF, 32, 32, 0, NULL},
    {"Grok-1 as released", "3",
     "{'model_type':'grok-1','emb_size':64,'widening_factor':8,'num_experts':4,'num_selected_experts':2}",
     GROK "router/w", GROK "moe/linear", GROK "moe/linear_v", GROK "moe/linear_1", "/w/weight", "/w/scales", NULL,
     CKPT_I8, CKPT_BF16, IF, ID, 32, 0, NULL},
    {"Grok-1 with dots, f32 scales", "12",
     "{'model_type':'grok-1','emb_size':64,'num_experts':4,'num_selected_experts':2}", GROK_DOT "router.w",
     GROK_DOT "moe.linear", GROK_DOT "moe.linear_v", GROK_DOT "moe.linear_1", ".w.weight", ".w.scales", NULL, CKPT_I8,
     CKPT_F32, IF, ID, IF, 0, NULL},
    {"Grok-1 with d_ff = d_model", "3", "{'model_type':'grok-1','num_experts':4,'num_selected_experts':2}",
     GROK "router/w", GROK "moe/linear", GROK "moe/linear_v", GROK "moe/linear_1", "/w/weight", "/w/scales", NULL,
     CKPT_I8, CKPT_BF16, ID, ID, 32, 0, NULL},
    {"Llama-4 by fbgemm with 2 d_ff = d_model", "3", LLAMA4 "}", L4 "router.weight", "", L4 "experts.gate_up_proj",
     L4 "experts.down_proj", "", "_scale", NULL, CKPT_F8_E4M3, CKPT_F32, ID / 2, ID, ID / 2, 1, NULL},
    {"gpt-oss in NVFP4 by modelopt", "1", /* gate and up alternate */
     "{'model_type':'gpt_oss','hidden_size':64,'num_local_experts':4,'num_experts_per_tok':2}", M1 "router.weight",
     "", M1 "experts.gate_up_proj", M1 "experts.down_proj", "", "_weight_scale", "_weight_scale_2", CKPT_U8,
     CKPT_F8_E4M3, IF, 16, 16, 0, NULL},
    {"scales of half the outputs", "3", LLAMA4 "}", L4 "router.weight", "", L4 "experts.gate_up_proj",
     L4 "experts.down_proj", "", "_scale", NULL, CKPT_F8_E4M3, CKPT_F32, IF, ID, IF, 2,
     "down_proj_scale: shape [4,1,32], not [experts,groups,outputs] or [experts,outputs,1]"},
};

static uint32_t noise(const char *name, uint64_t i) { /* 0 .. 255 */
    return (uint32_t)(value_of(name, i) * 128.0f + 127.5f);
}

/* Number i of a tensor: its bytes at `to`, its value (the high nibble's too) in v. */
static void put_number(ckpt_dtype type, const char *name, uint64_t i, int is_scale, uint8_t *to, double *v) {
    static const double fp4[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    uint32_t h = noise(name, i), code = is_scale ? 0x28 + h % 16 : (h & 0x80) + (h & 0x7F) % 0x70;
    float f = (float)(1 + h % 8) / 512;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (type == CKPT_F32) ckpt_store_f32(to, f), *v = (double)f;
    else if (type == CKPT_BF16) to[0] = (uint8_t)(bits >> 16), to[1] = (uint8_t)(bits >> 24), *v = (double)f;
    else if (type == CKPT_I8) *to = (uint8_t)h, *v = (double)(int8_t)h;
    else if (type == CKPT_U8 && is_scale) *to = (uint8_t)(118 + h % 5), *v = ldexp(1, (int)(h % 5) - 9);
    else if (type == CKPT_U8) {
        *to = (uint8_t)h;
        for (int n = 0; n < 2; n++) v[n] = fp4[h >> 4 * n & 7] * (h >> 4 * n & 8 ? -1 : 1);
    } else {
        *to = (uint8_t)code, *v = (code & 0x80 ? -1 : 1) * ldexp(1 + (code & 7) / 8.0, (int)(code >> 3 & 15) - 7);
        if (!(code >> 3 & 15)) *v = (code & 0x80 ? -1 : 1) * ldexp(code & 7, -9);
    }
}

typedef struct stack { /* [E][k][n]: the file's tensors and the numbers that they mean */
    char names[3][160];
    uint8_t *bytes[3];
    double *w;
} stack;

static void make_stack(const in_out *f, const char *stem, uint64_t k, uint64_t n, uint32_t group, int column,
                       stack *s, ckpt_out *out, size_t *n_out) {
    uint64_t per = f->weight_type == CKPT_U8 ? 2 : 1, groups = group ? k / group : 1;
    double v[2], *scales = (double *)malloc(E * groups * n * sizeof *scales), factor = 1;
    ckpt_out weight = {s->names[0], f->weight_type, 3, {E, k / per, n}, NULL},
             scale = {s->names[1], f->scale_type, 3, {E, groups, n}, NULL},
             scale2 = {s->names[2], CKPT_F32, 0, {0}, NULL};
    snprintf(s->names[0], sizeof *s->names, "%s%s", stem, f->suffix);
    snprintf(s->names[1], sizeof *s->names, "%s%s", stem, f->scale);
    if (f->scale2) snprintf(s->names[2], sizeof *s->names, "%s%s", stem, f->scale2);
    if (column) scale.dims[1] = n, scale.dims[2] = 1;
    if (column > 1) scale.dims[1] = 1, scale.dims[2] = n / 2;
    if (!group) scale.n_dims = 0;
    uint64_t count = group ? E * scale.dims[1] * scale.dims[2] : 1, item = ckpt_type(f->scale_type)->bytes;
    for (int i = 0; i < 3; i++) s->bytes[i] = (uint8_t *)calloc(1, E * k * n * 4);
    s->w = (double *)calloc(E * k * n, sizeof *s->w);
    for (uint64_t i = 0; i < count; i++)
        put_number(f->scale_type, s->names[1], i, 1, s->bytes[1] + i * item, v), scales[i] = v[0];
    if (f->scale2) put_number(CKPT_F32, s->names[2], 0, 1, s->bytes[2], &factor);
    for (uint64_t i = 0; i < E * k / per * n; i++) {
        put_number(f->weight_type, s->names[0], i, 0, s->bytes[0] + i, v);
        for (uint64_t h = 0; h < per; h++) {
            uint64_t e = i / n / (k / per), in = i / n % (k / per) * per + h, o = i % n;
            uint64_t at = !group ? 0 : (e * groups + in / group) * n + o;
            s->w[(e * k + in) * n + o] = v[h] * (at < count ? scales[at] : 0) * factor;
        }
    }
    weight.data = s->bytes[0], scale.data = s->bytes[1], scale2.data = s->bytes[2];
    out[(*n_out)++] = weight, out[(*n_out)++] = scale;
    if (f->scale2) out[(*n_out)++] = scale2;
    free(scales);
}

/* Row r of the matrix is output first + r * step of the stack. */
static void check_stack(const char *who, const char *role, const moe_matrix *m, const double *w, uint32_t rows,
                        uint32_t k, uint32_t n, uint32_t first, uint32_t step) {
    float line[IF];
    int wrong = 0;
    for (uint32_t e = 0; e < E; e++)
        for (uint32_t r = 0; r < rows; r++) {
            wrong += moe_dequantize(m, e, E, rows, k, r, 1, line) != MOE_OK;
            for (uint32_t i = 0; i < k; i++)
                wrong += fabs((double)line[i] - w[((size_t)e * k + i) * n + first + r * step]) > 0;
        }
    check(!wrong, who, "%s: %d weights are wrong", role, wrong);
}

/* The layer in double: Llama-4's (sigmoid of the best, at the input) or Grok-1's (two of the softmax, tanh GELU). */
static void forward_double(int llama4, uint32_t ff, const float *router, const double *gate, const double *up,
                           uint32_t n, const double *down, const float *x, double *y) {
    double l[E], sum = 0, h[IF];
    uint32_t best = 0;
    for (uint32_t e = 0; e < E; e++) {
        l[e] = 0;
        for (uint32_t i = 0; i < ID; i++) l[e] += (double)x[i] * (double)router[e * ID + i];
        sum += exp(l[e]);
        if (l[e] > l[best]) best = e;
    }
    for (uint32_t pick = 0; pick < (llama4 ? 1 : 2); pick++) {
        double p = llama4 ? 1 / (1 + exp(-l[best])) : exp(l[best]) / sum, in = llama4 ? p : 1, at = llama4 ? 1 : p;
        for (uint32_t r = 0; r < ff; r++) {
            double g = 0, u = 0;
            for (uint32_t i = 0; i < ID; i++)
                g += in * (double)x[i] * gate[((size_t)best * ID + i) * n + r],
                    u += in * (double)x[i] * up[((size_t)best * ID + i) * n + r];
            h[r] = u * (llama4 ? silu(g) : g / 2 * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))));
        }
        for (uint32_t o = 0; o < ID; o++)
            for (uint32_t r = 0; r < ff; r++) y[o] += at * h[r] * down[((size_t)best * ff + r) * ID + o];
        l[best] = -1e30;
        for (uint32_t e = 0; e < E; e++)
            if (l[e] > l[best]) best = e;
    }
}

static void check_forward(const char *who, const in_out *f, moe_desc *d, const float *router, const stack *s) {
    static float x[IT * ID], y[IT * ID];
    int fused = !*f->gate;
    moe_layer layer;
    moe_error e;
    moe_io io;
    memset(&e, 0, sizeof e);
    memset(&io, 0, sizeof io);
    for (size_t i = 0; i < IT * ID; i++) x[i] = value_of(who, i);
    d->compute = MOE_COMPUTE_F32;
    if (!check(!moe_layer_init(&layer, d, &e), who, "%s: %s", e.field, moe_status_text(e.status))) return;
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = IT;
    io.workspace_size = moe_workspace_size(&layer, IT, 1), io.workspace = malloc(io.workspace_size);
    check(!moe_forward(&layer, &io), who, "forward");
    free(io.workspace);
    for (uint32_t t = 0; t < IT; t++) {
        double want[ID] = {0}, most = 0, off = 0;
        forward_double(fused, f->ff, router, s[fused].w, fused ? s[1].w + f->ff : s[1].w, fused ? 2 * f->ff : f->ff,
                       s[2].w, x + t * ID, want);
        for (uint32_t i = 0; i < ID; i++) {
            double error = fabs((double)y[t * ID + i] - want[i]);
            most = fabs(want[i]) > most ? fabs(want[i]) : most, off = error > off ? error : off;
        }
        check(most > 0 && off < 1e-5 * most, who, "token %u: off by %g of %g", (unsigned)t, off, most);
    }
}

static void test_in_out(void) {
    for (size_t i = 0; i < sizeof in_outs / sizeof *in_outs; i++) {
        const in_out *f = &in_outs[i];
        char err[CKPT_ERR] = "";
        static float router[E * ID], stored[E * ID];
        stack s[3];
        ckpt_out out[10];
        size_t n = 1;
        int fused = !*f->gate, haiku = f->router[strlen(f->router) - 1] == 'w', before = failed;
        uint32_t width = fused ? 2 * f->ff : f->ff;
        ckpt c;
        ckpt_layers layers;
        ckpt_layer_info info;
        moe_desc d;
        memset(s, 0, sizeof s);
        for (uint32_t j = 0; j < E * ID; j++) router[j] = value_of(f->router, j) / 4;
        for (uint32_t j = 0; j < E * ID; j++)
            ckpt_store_f32(&stored[j], haiku ? router[j % E * ID + j / E] : router[j]);
        ckpt_out r = {f->router, CKPT_F32, 2, {haiku ? ID : E, haiku ? E : ID}, stored};
        out[0] = r;
        if (!fused) make_stack(f, f->gate, ID, f->ff, f->up_group, 0, &s[0], out, &n);
        make_stack(f, f->up, ID, width, f->up_group, 0, &s[1], out, &n);
        make_stack(f, f->down, f->ff, ID, f->down_group, f->column, &s[2], out, &n);
        int ok = !ckpt_write(TMP "/model.safetensors", out, n, NULL, err) && write_config(f->config) &&
                 !ckpt_open(&c, TMP, err) && !ckpt_layer_list(&c, &layers, err);
        if (check(ok && layers.n == 1 && !strcmp(layers.items->name, f->layer), f->name, "%s", err)) {
            int status = ckpt_layer_desc(&c, layers.items, &d, &info, err);
            if (f->says) check(status && strstr(err, f->says), f->name, "says \"%s\", not \"%s\"", err, f->says);
            else if (check(!status, f->name, "%s", err)) {
                uint32_t step = strstr(f->config, "gpt_oss") ? 2 : 1, second = step > 1 ? 1 : f->ff;
                check_stack(f->name, "gate", &d.gate, s[fused].w, f->ff, ID, width, 0, step);
                check_stack(f->name, "up", &d.up, s[1].w, f->ff, ID, width, fused ? second : 0, step);
                check_stack(f->name, "down", &d.down, s[2].w, ID, f->ff, ID, 0, 1);
                if (step == 1) check_forward(f->name, f, &d, router, s);
            }
            ckpt_layer_free(&info);
            ckpt_layers_free(&layers);
            ckpt_close(&c);
        }
        for (int j = 0; j < 9; j++) free(s[j / 3].bytes[j % 3]);
        for (int j = 0; j < 3; j++) free(s[j].w);
        if (failed == before) printf("ok   %s\n", f->name);
    }
}

/* ---- What must be refused, and what is said ---- */

static void test_refusals(void) {
    static const struct {
        const char *name, *config, *tensors, *says;
    } bad[] = {
        {"unknown family", "{'model_type':'frobnitz'}", M1 "gate.weight[4,8] " PER(M1), "frobnitz"},
        {"GroveMoE", "{'model_type':'grovemoe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2}",
         M1 "gate.weight[4,8] " PER(M1), "grovemoe\" is no weighted sum of independent experts"},
        {"no family", "{'hidden_size':8}", M1 "gate.weight[4,8] " PER(M1), "model_type"},
        {"hidden_size", "{'model_type':'qwen3_moe','hidden_size':16,'num_experts':4,'num_experts_per_tok':2}",
         M1 "gate.weight[4,8] " PER(M1), "[4,8], not 4 x 16"},
        {"num_experts", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':5,'num_experts_per_tok':2}",
         M1 "gate.weight[4,8] " PER(M1), "gate.weight"},
        {"an expert too many", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':3,'num_experts_per_tok':2}",
         M1 "gate.weight[3,8] " PER(M1), "experts.3"},
        {"moe_intermediate_size",
         "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2,'moe_intermediate_size':"
         "7}",
         M1 "gate.weight[4,8] " PER(M1), "moe_intermediate_size says 7"},
        {"top_k missing", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4}",
         M1 "gate.weight[4,8] " PER(M1), "num_experts_per_tok"},
        {"top_k 0", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':0}",
         M1 "gate.weight[4,8] " PER(M1), "num_experts_per_tok is 0"},
        {"top_k negative", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':-1}",
         M1 "gate.weight[4,8] " PER(M1), "num_experts_per_tok"},
        {"top_k a fraction", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':1.5}",
         M1 "gate.weight[4,8] " PER(M1), "num_experts_per_tok"},
        {"top_k a word", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':'two'}",
         M1 "gate.weight[4,8] " PER(M1), "not a number"},
        {"top_k too large", "{'model_type':'qwen3_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':5}",
         M1 "gate.weight[4,8] " PER(M1), "5 experts per token"},
        {"no gate matrix",
         "{'model_type':'mixtral','hidden_size':8,'intermediate_size':6,'num_local_experts':4,'num_experts_per_tok':"
         "2}",
         S1 "gate.weight[4,8] " S1 "experts.%e.w1.weight[6,8] " S1 "experts.%e.w2.weight[8,6]", "w3"},
        {"no shared gate", "{'model_type':'qwen2_moe','hidden_size':8,'num_experts':4,'num_experts_per_tok':2}",
         M1 "gate.weight[4,8] " PER(M1) SHARED(M1 "shared_expert.", "10"), "shared_expert_gate"},
        {"bias of another length",
         "{'model_type':'glm4_moe','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2}",
         M1 "gate.weight[4,8] " M1 "gate.e_score_correction_bias[5] " PER(M1), "e_score_correction_bias"},
        {"table of another width",
         "{'model_type':'deepseek_v4','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2}",
         "layers.1.ffn.gate.weight[4,8] layers.1.ffn.gate.tid2eid:i64[16,3] " W123("layers.1.ffn."), "tid2eid"},
        {"limit below 0",
         "{'model_type':'deepseek_v4','hidden_size':8,'n_routed_experts':4,'num_experts_per_tok':2,'swiglu_limit':-"
         "1}",
         "layers.1.ffn.gate.weight[4,8] " W123("layers.1.ffn."), "swiglu_limit"},
    };
    static built b;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char err[CKPT_ERR] = "";
        ckpt c;
        ckpt_layers layers;
        ckpt_layer_info info;
        moe_desc d;
        build(&b, bad[i].tensors);
        int ok = !ckpt_write(TMP "/model.safetensors", b.out, b.n, NULL, err) && write_config(bad[i].config) &&
                 !ckpt_open(&c, TMP, err);
        if (check(ok, bad[i].name, "%s", err)) {
            int listed = !ckpt_layer_list(&c, &layers, err) && layers.n == 1;
            if (check(listed, bad[i].name, "%s", err)) {
                int refused = ckpt_layer_desc(&c, layers.items, &d, &info, err) != 0;
                check(refused, bad[i].name, "was accepted");
                if (refused)
                    check(strstr(err, bad[i].says) && !strchr(err, '\n') && !info.memory, bad[i].name,
                          "says \"%s\", nothing of %s", err, bad[i].says);
                else ckpt_layer_free(&info);
            }
            ckpt_layers_free(&layers);
            ckpt_close(&c);
        }
        for (size_t j = 0; j < b.n; j++) free(b.data[j]);
    }
}

int main(void) {
    if (system("mkdir -p " TMP)) return 1;
    test_families();
    test_ggufs();
    test_turn();
    test_fused_fp8(128);
    test_fused_fp8(24);
    test_pangu();
    test_in_out();
    test_refusals();
    if (system("rm -rf " TMP)) failed++;
    printf("test_models: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
