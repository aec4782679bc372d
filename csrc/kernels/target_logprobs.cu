// Log-probabilities of given tokens. One block per row.
#ifndef BURRSTONE_KERNELS_TARGET_LOGPROBS_CU
#define BURRSTONE_KERNELS_TARGET_LOGPROBS_CU

#include "abi/target_logprobs.h"
#include "kernels/logits.cuh"

namespace burrstone {

template <class V> using target_logprobs_shared = LogitsShared<V::threads>;

template <class V>
BURRSTONE_DEVICE void target_logprobs(const target_logprobs_args &args, target_logprobs_shared<V> &shared) {
    const uint32_t index = block_index_x();
    const float *row = pointer<const float>(args.logits) + uint64_t(index) * args.vocab;
    const Largest largest = largest_logit<V::threads>(row, args.vocab, shared);
    float result = bit_cast<float>(0x7fffffffu);
    if (largest.bad == NO_COLUMN && largest.logit > -INFINITY_F) {
        const double log_sum = log_sum_exp<V::threads>(row, args.vocab, largest.logit, shared);
        result = logprob(load(row + load(pointer<const uint32_t>(args.targets) + index)), largest.logit, log_sum);
    }
    if (thread_index() == 0) store(pointer<float>(args.out) + index, result);
}

} // namespace burrstone

#endif
