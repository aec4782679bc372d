// Chooses the next token of each row of logits. One block per row.
//
// Nothing is sorted: a filter's threshold is found digit by digit from histograms over the bits of the weights, whose
// order is that of the weights; the draw uses the bits of the ids likewise. Weights are summed as integers, so the
// choice is the same for every number of threads and in every run.
#ifndef BURRSTONE_KERNELS_SAMPLE_CU
#define BURRSTONE_KERNELS_SAMPLE_CU

#include "abi/sample.h"
#include "kernels/logits.cuh"

namespace burrstone {

// Enough for the leading 11 bits of a weight from 0 to 1 (the others follow in 10 and 9), and for pieces of 512 ids of
// the largest vocabulary.
constexpr uint32_t SAMPLE_BINS = 2048;

template <class V> struct sample_shared {
    LogitsShared<V::threads> logits;
    Shared<u64, int(SAMPLE_BINS)> bins;
    Shared<u64, V::threads / int(WARP)> totals;
    Shared<uint32_t, 1> bin;
    // What lies before the chosen bin, and in it.
    Shared<u64, 2> sums;
    Shared<float, 1> logit;
};

template <class V> class Sampler {
    static constexpr uint32_t THREADS = V::threads;
    static constexpr uint32_t WARPS = THREADS / WARP;
    static constexpr float MIN_NORMAL = bit_cast<float>(0x00800000u);
    static constexpr float MAX = bit_cast<float>(0x7f7fffffu);

    // A token stays if it weighs more than `weight`, or as much and its id is at most `last`. Weights are the bits of
    // floats from 0 to 1.
    struct Floor {
        uint32_t weight;
        uint32_t last;
        BURRSTONE_DEVICE bool keeps(uint32_t token, uint32_t bits) const {
            return bits > weight || (bits == weight && token <= last);
        }
    };
    // A token stays if the logarithm of its weight is near to the mean. Nearness is the bits of 1 / (1 + distance).
    struct Typical {
        float mean;
        uint32_t least;
        BURRSTONE_DEVICE uint32_t nearness(float log_weight) const {
            return bit_cast<uint32_t>(1.0f / (1.0f + abs_(log_weight - mean)));
        }
        BURRSTONE_DEVICE bool keeps(float log_weight) const { return least == 0 || nearness(log_weight) >= least; }
    };
    // The first key at which a running sum reaches the target.
    struct Cut {
        bool found;
        uint32_t key;
        u64 before;
        u64 here;
        u64 target;
    };

    const sample_row &row;
    float *logits;
    uint32_t *lists;
    const uint32_t vocab;
    sample_shared<V> &shared;
    // Of the weights.
    float largest = 0.0f;
    float sharpness = 0.0f;

  public:
    BURRSTONE_DEVICE Sampler(const sample_args &args, const sample_row &row, sample_shared<V> &shared)
        : row(row), logits(pointer<float>(args.logits) + uint64_t(block_index_x()) * args.vocab),
          lists(pointer<uint32_t>(args.lists)), vocab(args.vocab), shared(shared) {}

    BURRSTONE_DEVICE sample_result run() {
        const Largest own = largest_logit<V::threads>(logits, vocab, shared.logits);
        if (own.bad != NO_COLUMN) return {own.bad, load(logits + own.bad), 1, 0};
        if (own.logit == -INFINITY_F) return {0, own.logit, 1, 0};
        const double log_sum = log_sum_exp<V::threads>(logits, vocab, own.logit, shared.logits);
        Largest best = own;
        if (row.seen_len > 0 || row.biases_len > 0 || row.mask != NO_COLUMN) {
            adjust();
            best = largest_logit<V::threads>(logits, vocab, shared.logits);
            if (best.logit == -INFINITY_F) return {0, 0.0f, 2, 0};
        }
        largest = best.logit;
        const uint32_t token = row.temperature > 0.0f ? drawn() : best.column;
        return {token, logprob(original(token), own.logit, log_sum), 0, 0};
    }

  private:
    // Penalties, biases and mask, in this order, in place. All threads have read the logits by now: their sum is known.
    BURRSTONE_DEVICE void adjust() {
        sample_seen *seen = reinterpret_cast<sample_seen *>(lists + row.seen);
        for (uint32_t i = thread_index(); i < row.seen_len; i += THREADS) {
            float *at = logits + load(&seen[i].token);
            const uint32_t generated = load(&seen[i].generated);
            const float logit = load(at), rate = row.repetition_penalty;
            store(&seen[i].logit, logit);
            // No contraction to FMA, so that the bits equal the CPU's.
            const float scaled = logit > 0.0f ? logit / rate : mul_(logit, rate);
            const float presence = generated > 0 ? row.presence_penalty : 0.0f;
            store(at, min_(scaled - mul_(row.frequency_penalty, float(generated)) - presence, MAX));
        }
        sync_block();
        sample_bias *biases = reinterpret_cast<sample_bias *>(lists + row.biases);
        for (uint32_t i = thread_index(); i < row.biases_len; i += THREADS) {
            float *at = logits + load(&biases[i].token);
            const float logit = load(at);
            store(&biases[i].logit, logit);
            store(at, min_(logit + load(&biases[i].bias), MAX));
        }
        sync_block();
        if (row.mask != NO_COLUMN) {
            for (uint32_t token = thread_index(); token < vocab; token += THREADS)
                if (!(load(lists + row.mask + token / 32) >> token % 32 & 1)) store(logits + token, -INFINITY_F);
            sync_block();
        }
    }

    // The logit of a token as the model gave it.
    BURRSTONE_DEVICE float original(uint32_t token) {
        if (thread_index() == 0) shared.logit.store(0, load(logits + token));
        sync_block();
        const sample_bias *biases = reinterpret_cast<const sample_bias *>(lists + row.biases);
        for (uint32_t i = thread_index(); i < row.biases_len; i += THREADS)
            if (load(&biases[i].token) == token) shared.logit.store(0, load(&biases[i].logit));
        sync_block();
        // Penalties came first.
        const sample_seen *seen = reinterpret_cast<const sample_seen *>(lists + row.seen);
        for (uint32_t i = thread_index(); i < row.seen_len; i += THREADS)
            if (load(&seen[i].token) == token) shared.logit.store(0, load(&seen[i].logit));
        sync_block();
        return shared.logit.load(0);
    }

    // The logarithm of a token's weight: the likeliest token weighs 1.
    BURRSTONE_DEVICE float log_weight(float logit) const { return (logit - largest) * sharpness; }
    BURRSTONE_DEVICE uint32_t weight(float logit) const { return bit_cast<uint32_t>(exp_(log_weight(logit))); }
    static BURRSTONE_DEVICE u64 mass(uint32_t weight) { return fixed_point(bit_cast<float>(weight)); }
    // The least whole number that is `share` of `total`, from 1 to `total`.
    static BURRSTONE_DEVICE u64 share_of(u64 total, float share) {
        const double wanted = double(share) * double(total);
        u64 target = u64(wanted);
        if (double(target) < wanted || target == 0) ++target;
        return target < total ? target : total;
    }

    BURRSTONE_DEVICE uint32_t drawn() {
        // The largest logit's difference is 0, which must not meet infinity.
        sharpness = min_(1.0f / row.temperature, MAX);
        const Floor floor = filtered();
        const Typical typical = row.typical_p < 1.0f ? typical_of(floor) : Typical{0.0f, 0};
        const auto kept = [this, floor, typical](uint32_t token, float logit) {
            const uint32_t bits = weight(logit);
            return floor.keeps(token, bits) && typical.keeps(log_weight(logit)) ? mass(bits) : 0;
        };
        const double uniform = row.uniform;
        return by_id(kept, [=](u64 total) {
            const u64 target = u64(uniform * double(total));
            return (target < total ? target : total - 1) + 1;
        });
    }

    // The thresholds of top-k, top-p and min-p, in this order. Tokens as likely as the k-th are kept; where top-p cuts
    // among equals, lower ids are kept.
    BURRSTONE_DEVICE Floor filtered() {
        Floor floor{bit_cast<uint32_t>(MIN_NORMAL), NO_COLUMN};
        const auto weights = [this](float logit) { return weight(logit); };
        if (row.top_k > 0 && row.top_k < vocab) {
            const auto one = [=](uint32_t token, float, uint32_t bits) { return u64(floor.keeps(token, bits)); };
            const u64 k = row.top_k;
            const Cut cut = by_key(weights, one, [=](u64) { return k; });
            if (cut.found) floor.weight = cut.key;
        }
        if (row.top_p < 1.0f) {
            const auto kept = [=](uint32_t token, float, uint32_t bits) {
                return floor.keeps(token, bits) ? mass(bits) : 0;
            };
            const float p = row.top_p;
            const Cut cut = by_key(weights, kept, [=](u64 total) { return share_of(total, p); });
            floor.weight = cut.key;
            const u64 each = mass(cut.key), needed = (cut.target - cut.before + each - 1) / each;
            if (needed < cut.here / each) {
                const uint32_t equal = cut.key;
                const auto one = [this, equal](uint32_t, float logit) { return u64(weight(logit) == equal); };
                floor.last = by_id(one, [=](u64) { return needed; });
            }
        }
        const uint32_t least = bit_cast<uint32_t>(row.min_p);
        if (least > floor.weight) floor = {least, NO_COLUMN};
        return floor;
    }

    // Typical-p: the tokens nearest to the mean surprise, of those that the filters above keep.
    BURRSTONE_DEVICE Typical typical_of(Floor floor) {
        // All weights, and their products with minus their logarithms, which are at most 1/e.
        u64 total = 0, moment = 0;
        each_logit<V::threads>(logits, vocab, [&](uint32_t token, float logit) {
            const uint32_t bits = weight(logit);
            if (!floor.keeps(token, bits)) return;
            total += mass(bits);
            moment += fixed_point(-mul_(bit_cast<float>(bits), log_weight(logit)));
        });
        // All threads have read the sums of the softmax.
        sync_block();
        total = reduce_sum_block(total, shared.logits.sum);
        sync_block();
        moment = reduce_sum_block(moment, shared.logits.sum);
        Typical typical{-float(double(moment) / double(total)), 0};
        const auto nearness = [this, typical](float logit) { return typical.nearness(log_weight(logit)); };
        const auto kept = [this, floor](uint32_t token, float logit, uint32_t) {
            const uint32_t bits = weight(logit);
            return floor.keeps(token, bits) ? mass(bits) : 0;
        };
        const float p = row.typical_p;
        typical.least = by_key(nearness, kept, [=](u64 total) { return share_of(total, p); }).key;
        return typical;
    }

    // The largest key such that value(token, logit, key), summed over all tokens with keys as large or larger, reaches
    // target(sum over all tokens). Keys are the bits of floats from 0 to 1.
    template <class Key, class Value, class Target>
    BURRSTONE_DEVICE Cut by_key(Key key_of, Value value, Target target) {
        Cut cut{true, 0, 0, 0, 0};
        uint32_t shift = 30;
        BURRSTONE_ROLLED
        for (uint32_t width = 11; width >= 9; --width) {
            const uint32_t above = shift, prefix = cut.key;
            shift -= width;
            clear();
            each_logit<V::threads>(logits, vocab, [&](uint32_t token, float logit) {
                const uint32_t bits = key_of(logit);
                if (bits >> above != prefix) return;
                const u64 v = value(token, logit, bits);
                // Larger keys come first.
                if (v) shared.bins.atomic_add(SAMPLE_BINS - 1 - ((bits >> shift) & ((1u << width) - 1)), v);
            });
            sync_block();
            const Cut next = pick(cut.before, [&](u64 total) { return width == 11 ? target(total) : cut.target; });
            if (!next.found) return next;
            cut = next;
            cut.key = prefix << width | (SAMPLE_BINS - 1 - next.key);
        }
        return cut;
    }

    // The lowest token such that value(token, logit), summed over it and all tokens before, reaches
    // target(sum over all tokens), which it does.
    template <class Value, class Target> BURRSTONE_DEVICE uint32_t by_id(Value value, Target target) {
        // Pieces that each are whole groups of a warp.
        uint32_t bits = 7;
        static_assert(LOGIT_GROUP == 1u << 7, "a warp's group");
        while (vocab > SAMPLE_BINS << bits) ++bits;
        clear();
        u64 sum = 0;
        each_logit<V::threads>(
            logits, vocab, [&](uint32_t token, float logit) { sum += value(token, logit); },
            [&](uint32_t group) {
                sum = reduce_sum(sum);
                if (lane_index() == 0 && sum) shared.bins.atomic_add(group * LOGIT_GROUP >> bits, sum);
                sum = 0;
            });
        sync_block();
        const Cut piece = pick(0, target);
        const uint32_t first = piece.key << bits;
        clear();
        for (uint32_t i = thread_index(); i < 1u << bits && first + i < vocab; i += THREADS)
            shared.bins.store(i, value(first + i, load(logits + first + i)));
        sync_block();
        return first + pick(piece.before, [&](u64) { return piece.target; }).key;
    }

    BURRSTONE_DEVICE void clear() {
        // The last pick ended with a barrier, so the bins are free.
        for (uint32_t i = thread_index(); i < SAMPLE_BINS; i += THREADS) shared.bins.store(i, 0);
        sync_block();
    }

    // The first bin at which the running sum, from `before` on, reaches target(sum of all bins).
    template <class Target> BURRSTONE_DEVICE Cut pick(u64 before, Target target_of) {
        constexpr uint32_t OWN = SAMPLE_BINS / THREADS;
        const uint32_t first = thread_index() * OWN;
        u64 own = 0;
        for (uint32_t i = 0; i < OWN; ++i) own += shared.bins.load(first + i);
        u64 sum = own;
        for (uint32_t delta = 1; delta < WARP; delta *= 2) {
            const u64 lower = shfl_up(sum, delta);
            if (lane_index() >= delta) sum += lower;
        }
        if (lane_index() == WARP - 1) shared.totals.store(warp_index(), sum);
        sync_block();
        u64 running = before + sum - own, total = 0;
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            const u64 of_warp = shared.totals.load(warp);
            if (warp < warp_index()) running += of_warp;
            total += of_warp;
        }
        const u64 target = target_of(total);
        if (running < target && target <= running + own) {
            uint32_t bin = first;
            u64 here = shared.bins.load(bin);
            while (running + here < target) {
                running += here;
                here = shared.bins.load(++bin);
            }
            shared.bin.store(0, bin);
            shared.sums.store(0, running);
            shared.sums.store(1, here);
        }
        sync_block();
        if (target > before + total) return {false, 0, 0, 0, 0};
        return {true, shared.bin.load(0), shared.sums.load(0), shared.sums.load(1), target};
    }
};

template <class V> BURRSTONE_DEVICE void sample(const sample_args &args, sample_shared<V> &shared) {
    const sample_row *at = pointer<const sample_row>(args.rows) + block_index_x();
    sample_row row;
    row.uniform = load(&at->uniform);
    row.temperature = load(&at->temperature);
    row.top_k = load(&at->top_k);
    row.top_p = load(&at->top_p);
    row.min_p = load(&at->min_p);
    row.typical_p = load(&at->typical_p);
    row.repetition_penalty = load(&at->repetition_penalty);
    row.presence_penalty = load(&at->presence_penalty);
    row.frequency_penalty = load(&at->frequency_penalty);
    row.seen = load(&at->seen);
    row.seen_len = load(&at->seen_len);
    row.biases = load(&at->biases);
    row.biases_len = load(&at->biases_len);
    row.mask = load(&at->mask);
    const sample_result result = Sampler<V>(args, row, shared).run();
    if (thread_index() == 0)
        store(pointer<vec<uint32_t, 4>>(args.results) + block_index_x(), bit_cast<vec<uint32_t, 4>>(result));
}

} // namespace burrstone

#endif
