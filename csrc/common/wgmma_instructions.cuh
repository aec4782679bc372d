// The instructions of wgmma for every width: their register lists, four registers for each eight columns.
#ifndef BURRSTONE_COMMON_WGMMA_INSTRUCTIONS_CUH
#define BURRSTONE_COMMON_WGMMA_INSTRUCTIONS_CUH

#include "common/types.cuh"

// Names of the accumulator's registers in the text of an instruction.
#define BURRSTONE_WGMMA_D8 "%0, %1, %2, %3"
#define BURRSTONE_WGMMA_D16 BURRSTONE_WGMMA_D8 ", %4, %5, %6, %7"
#define BURRSTONE_WGMMA_D24 BURRSTONE_WGMMA_D16 ", %8, %9, %10, %11"
#define BURRSTONE_WGMMA_D32 BURRSTONE_WGMMA_D24 ", %12, %13, %14, %15"
#define BURRSTONE_WGMMA_D40 BURRSTONE_WGMMA_D32 ", %16, %17, %18, %19"
#define BURRSTONE_WGMMA_D48 BURRSTONE_WGMMA_D40 ", %20, %21, %22, %23"
#define BURRSTONE_WGMMA_D56 BURRSTONE_WGMMA_D48 ", %24, %25, %26, %27"
#define BURRSTONE_WGMMA_D64 BURRSTONE_WGMMA_D56 ", %28, %29, %30, %31"
#define BURRSTONE_WGMMA_D72 BURRSTONE_WGMMA_D64 ", %32, %33, %34, %35"
#define BURRSTONE_WGMMA_D80 BURRSTONE_WGMMA_D72 ", %36, %37, %38, %39"
#define BURRSTONE_WGMMA_D88 BURRSTONE_WGMMA_D80 ", %40, %41, %42, %43"
#define BURRSTONE_WGMMA_D96 BURRSTONE_WGMMA_D88 ", %44, %45, %46, %47"
#define BURRSTONE_WGMMA_D104 BURRSTONE_WGMMA_D96 ", %48, %49, %50, %51"
#define BURRSTONE_WGMMA_D112 BURRSTONE_WGMMA_D104 ", %52, %53, %54, %55"
#define BURRSTONE_WGMMA_D120 BURRSTONE_WGMMA_D112 ", %56, %57, %58, %59"
#define BURRSTONE_WGMMA_D128 BURRSTONE_WGMMA_D120 ", %60, %61, %62, %63"
#define BURRSTONE_WGMMA_D136 BURRSTONE_WGMMA_D128 ", %64, %65, %66, %67"
#define BURRSTONE_WGMMA_D144 BURRSTONE_WGMMA_D136 ", %68, %69, %70, %71"
#define BURRSTONE_WGMMA_D152 BURRSTONE_WGMMA_D144 ", %72, %73, %74, %75"
#define BURRSTONE_WGMMA_D160 BURRSTONE_WGMMA_D152 ", %76, %77, %78, %79"
#define BURRSTONE_WGMMA_D168 BURRSTONE_WGMMA_D160 ", %80, %81, %82, %83"
#define BURRSTONE_WGMMA_D176 BURRSTONE_WGMMA_D168 ", %84, %85, %86, %87"
#define BURRSTONE_WGMMA_D184 BURRSTONE_WGMMA_D176 ", %88, %89, %90, %91"
#define BURRSTONE_WGMMA_D192 BURRSTONE_WGMMA_D184 ", %92, %93, %94, %95"
#define BURRSTONE_WGMMA_D200 BURRSTONE_WGMMA_D192 ", %96, %97, %98, %99"
#define BURRSTONE_WGMMA_D208 BURRSTONE_WGMMA_D200 ", %100, %101, %102, %103"
#define BURRSTONE_WGMMA_D216 BURRSTONE_WGMMA_D208 ", %104, %105, %106, %107"
#define BURRSTONE_WGMMA_D224 BURRSTONE_WGMMA_D216 ", %108, %109, %110, %111"
#define BURRSTONE_WGMMA_D232 BURRSTONE_WGMMA_D224 ", %112, %113, %114, %115"
#define BURRSTONE_WGMMA_D240 BURRSTONE_WGMMA_D232 ", %116, %117, %118, %119"
#define BURRSTONE_WGMMA_D248 BURRSTONE_WGMMA_D240 ", %120, %121, %122, %123"
#define BURRSTONE_WGMMA_D256 BURRSTONE_WGMMA_D248 ", %124, %125, %126, %127"

// The same registers as operands.
#define BURRSTONE_WGMMA_R8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define BURRSTONE_WGMMA_R16 BURRSTONE_WGMMA_R8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define BURRSTONE_WGMMA_R24 BURRSTONE_WGMMA_R16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define BURRSTONE_WGMMA_R32 BURRSTONE_WGMMA_R24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define BURRSTONE_WGMMA_R40 BURRSTONE_WGMMA_R32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define BURRSTONE_WGMMA_R48 BURRSTONE_WGMMA_R40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define BURRSTONE_WGMMA_R56 BURRSTONE_WGMMA_R48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define BURRSTONE_WGMMA_R64 BURRSTONE_WGMMA_R56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define BURRSTONE_WGMMA_R72 BURRSTONE_WGMMA_R64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define BURRSTONE_WGMMA_R80 BURRSTONE_WGMMA_R72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define BURRSTONE_WGMMA_R88 BURRSTONE_WGMMA_R80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define BURRSTONE_WGMMA_R96 BURRSTONE_WGMMA_R88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define BURRSTONE_WGMMA_R104 BURRSTONE_WGMMA_R96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define BURRSTONE_WGMMA_R112 BURRSTONE_WGMMA_R104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define BURRSTONE_WGMMA_R120 BURRSTONE_WGMMA_R112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define BURRSTONE_WGMMA_R128 BURRSTONE_WGMMA_R120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define BURRSTONE_WGMMA_R136 BURRSTONE_WGMMA_R128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define BURRSTONE_WGMMA_R144 BURRSTONE_WGMMA_R136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define BURRSTONE_WGMMA_R152 BURRSTONE_WGMMA_R144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define BURRSTONE_WGMMA_R160 BURRSTONE_WGMMA_R152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define BURRSTONE_WGMMA_R168 BURRSTONE_WGMMA_R160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define BURRSTONE_WGMMA_R176 BURRSTONE_WGMMA_R168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define BURRSTONE_WGMMA_R184 BURRSTONE_WGMMA_R176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define BURRSTONE_WGMMA_R192 BURRSTONE_WGMMA_R184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define BURRSTONE_WGMMA_R200 BURRSTONE_WGMMA_R192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define BURRSTONE_WGMMA_R208 BURRSTONE_WGMMA_R200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define BURRSTONE_WGMMA_R216 BURRSTONE_WGMMA_R208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define BURRSTONE_WGMMA_R224 BURRSTONE_WGMMA_R216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define BURRSTONE_WGMMA_R232 BURRSTONE_WGMMA_R224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define BURRSTONE_WGMMA_R240 BURRSTONE_WGMMA_R232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define BURRSTONE_WGMMA_R248 BURRSTONE_WGMMA_R240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define BURRSTONE_WGMMA_R256 BURRSTONE_WGMMA_R248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

namespace burrstone::detail {

template <int N> struct WgmmaInstruction;

// P0 to P6 are the names of the operands after the accumulator.
#define BURRSTONE_WGMMA_ONE(N, TYPE, NAME, P0, P1, P2, P3, P4, P5, P6)                                                 \
    template <bool A_MN, bool B_MN>                                                                                    \
    static __device__ __forceinline__ void run(TYPE, float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {      \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " P2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME  \
                     "." NAME " {" BURRSTONE_WGMMA_D##N "}, " P0 ", " P1 ", p, 1, 1, " P3 ", " P4 "; }"                \
                     : BURRSTONE_WGMMA_R##N                                                                            \
                     : "l"(a), "l"(b), "r"(accumulate), "n"(int(A_MN)), "n"(int(B_MN)));                               \
    }                                                                                                                  \
    template <bool B_MN>                                                                                               \
    static __device__ __forceinline__ void run(TYPE, float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,            \
                                               int accumulate) {                                                       \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " P5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME  \
                     "." NAME " {" BURRSTONE_WGMMA_D##N "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, " P6    \
                     "; }"                                                                                             \
                     : BURRSTONE_WGMMA_R##N                                                                            \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(int(B_MN)));           \
    }

#define BURRSTONE_WGMMA(N, P0, P1, P2, P3, P4, P5, P6)                                                                 \
    template <> struct WgmmaInstruction<N> {                                                                           \
        BURRSTONE_WGMMA_ONE(N, f16, "f16", P0, P1, P2, P3, P4, P5, P6)                                                 \
        BURRSTONE_WGMMA_ONE(N, bf16, "bf16", P0, P1, P2, P3, P4, P5, P6)                                               \
    };

BURRSTONE_WGMMA(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
BURRSTONE_WGMMA(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
BURRSTONE_WGMMA(24, "%12", "%13", "%14", "%15", "%16", "%17", "%18")
BURRSTONE_WGMMA(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
BURRSTONE_WGMMA(40, "%20", "%21", "%22", "%23", "%24", "%25", "%26")
BURRSTONE_WGMMA(48, "%24", "%25", "%26", "%27", "%28", "%29", "%30")
BURRSTONE_WGMMA(56, "%28", "%29", "%30", "%31", "%32", "%33", "%34")
BURRSTONE_WGMMA(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
BURRSTONE_WGMMA(72, "%36", "%37", "%38", "%39", "%40", "%41", "%42")
BURRSTONE_WGMMA(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
BURRSTONE_WGMMA(88, "%44", "%45", "%46", "%47", "%48", "%49", "%50")
BURRSTONE_WGMMA(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
BURRSTONE_WGMMA(104, "%52", "%53", "%54", "%55", "%56", "%57", "%58")
BURRSTONE_WGMMA(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
BURRSTONE_WGMMA(120, "%60", "%61", "%62", "%63", "%64", "%65", "%66")
BURRSTONE_WGMMA(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
BURRSTONE_WGMMA(136, "%68", "%69", "%70", "%71", "%72", "%73", "%74")
BURRSTONE_WGMMA(144, "%72", "%73", "%74", "%75", "%76", "%77", "%78")
BURRSTONE_WGMMA(152, "%76", "%77", "%78", "%79", "%80", "%81", "%82")
BURRSTONE_WGMMA(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
BURRSTONE_WGMMA(168, "%84", "%85", "%86", "%87", "%88", "%89", "%90")
BURRSTONE_WGMMA(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
BURRSTONE_WGMMA(184, "%92", "%93", "%94", "%95", "%96", "%97", "%98")
BURRSTONE_WGMMA(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
BURRSTONE_WGMMA(200, "%100", "%101", "%102", "%103", "%104", "%105", "%106")
BURRSTONE_WGMMA(208, "%104", "%105", "%106", "%107", "%108", "%109", "%110")
BURRSTONE_WGMMA(216, "%108", "%109", "%110", "%111", "%112", "%113", "%114")
BURRSTONE_WGMMA(224, "%112", "%113", "%114", "%115", "%116", "%117", "%118")
BURRSTONE_WGMMA(232, "%116", "%117", "%118", "%119", "%120", "%121", "%122")
BURRSTONE_WGMMA(240, "%120", "%121", "%122", "%123", "%124", "%125", "%126")
BURRSTONE_WGMMA(248, "%124", "%125", "%126", "%127", "%128", "%129", "%130")
BURRSTONE_WGMMA(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef BURRSTONE_WGMMA
#undef BURRSTONE_WGMMA_ONE

} // namespace burrstone::detail

#endif
