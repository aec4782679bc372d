#ifndef BURRSTONE_ABI_SAMPLE_H
#define BURRSTONE_ABI_SAMPLE_H
#include "types.h"

/* A token that was seen before. */
typedef struct sample_seen {
    uint32_t token;
    /* How often it was generated; 0 where only the prompt has it. */
    uint32_t generated;
    /* The kernel's: the logit before the penalties. */
    float logit;
} sample_seen;

/* A token's additive bias. */
typedef struct sample_bias {
    uint32_t token;
    float bias;
    /* The kernel's: the logit before the bias. */
    float logit;
} sample_bias;

/* How the next token of one row is chosen. Offsets count 4-byte words from sample_args.lists. */
typedef struct sample_row {
    /* The draw, in [0, 1): a function of the request's seed and the position, computed by the host. */
    double uniform;
    float temperature; /* 0 takes the most likely token, the lowest id among equals */
    uint32_t top_k;    /* 0 keeps all */
    float top_p;       /* 1 keeps all */
    float min_p;       /* 0 keeps all */
    float typical_p;   /* 1 keeps all */
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint32_t seen; /* offset of sample_seen [seen_len], each token once */
    uint32_t seen_len;
    uint32_t biases; /* offset of sample_bias [biases_len], each token once; -infinity bans */
    uint32_t biases_len;
    uint32_t mask; /* offset of a bitmask of vocab bits, set where a token is allowed; 0xffffffff: none */
    uint32_t padding;
} sample_row;

/* A chosen token. */
typedef struct sample_result {
    uint32_t token;
    float logprob;   /* under the model: before temperature, penalties and filters */
    uint32_t status; /* 0 chosen; 1 the row has no softmax: see column `token`, whose logit is `logprob`; 2 no token is left */
    uint32_t padding;
} sample_result;

/* Chooses one token for each row of logits. */
typedef struct sample_args {
    device_ptr logits;  /* f32 [rows_len, vocab]; penalties and biases are applied in place */
    device_ptr rows;    /* sample_row [rows_len] */
    device_ptr lists;   /* what the rows' offsets lead to; the kernel notes logits there */
    device_ptr results; /* sample_result [rows_len] */
    uint32_t rows_len;
    uint32_t vocab;
} sample_args;

#endif
