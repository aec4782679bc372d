//! `out = x · weightᵀ + bias`, optionally accumulated into `out` or gated: `activation(gate) · up`.

#[cfg(feature = "cuda")]
use super::abi::BURRSTONE_MATMUL_COUNTERS;
use super::abi::{
    BURRSTONE_MATMUL_E4M3, BURRSTONE_MATMUL_GATES, BURRSTONE_MATMUL_I8, BURRSTONE_MATMUL_PAIR_WEIGHT,
    BURRSTONE_MATMUL_PAIR_X, matmul_args, tensor_map,
};
use super::act_mul::code;
use super::call::{Call, Check};
use super::cost::CostModel;
use super::matmul_plan::{MatMulPair, MatMulPlan, MatMulShape, STAGE, WeightKind, gated_rows};
use super::packed_weight::MatMulCodes;
use super::tables::MATMUL;
#[cfg(feature = "cuda")]
use crate::device::{CublasLt, Product};
use crate::device::{Slice, SliceMut, Stream, Swizzle, TmaBoxes};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Activation;

const CHECK: Check = Check("matmul");
const NO_BOXES: tensor_map = tensor_map { opaque: [0; 16] };

/// The weight of a [`MatMul`].
#[derive(Clone, Copy)]
pub enum MatMulWeight<'a> {
    /// Elements of x's dtype.
    Dense(Slice<'a>),
    /// Codes of a [`PackedWeight`](super::PackedWeight). Results have the bits of a product with the dequantized weight.
    /// `x` begins at a multiple of 16 bytes.
    Codes(MatMulCodes<'a>),
}

impl<'a> From<Slice<'a>> for MatMulWeight<'a> {
    fn from(weight: Slice<'a>) -> Self {
        Self::Dense(weight)
    }
}

impl<'a> From<MatMulCodes<'a>> for MatMulWeight<'a> {
    fn from(weight: MatMulCodes<'a>) -> Self {
        Self::Codes(weight)
    }
}

impl MatMulWeight<'_> {
    fn address(&self) -> u64 {
        match self {
            Self::Dense(weight) => weight.address(),
            Self::Codes(weight) => weight.codes.address(),
        }
    }

    fn kind(&self) -> WeightKind {
        match self {
            Self::Dense(_) => WeightKind::Dense,
            Self::Codes(weight) => weight.format.kind,
        }
    }
}

/// A linear layer on the tensor cores. The bits of an output depend only on its row of `x`, its row of the weight and
/// the device's architecture, not on other rows or on how the work is divided.
pub struct MatMul<'a> {
    /// `[m, k]` of bf16 or f16.
    pub x: Slice<'a>,
    /// `[n, k]`. With a gate `[gated_rows(n), k]`: [`GATES`](Self::GATES) rows of the gate projection, as many of up,
    /// and so on; the last group is padded.
    pub weight: MatMulWeight<'a>,
    /// `[n]`, or one per row of a gated weight, of the same dtype.
    pub bias: Option<Slice<'a>>,
    /// `out = activation(gate) · up`: both products and the result are rounded to `out`'s dtype, with the bits of
    /// [`ActMul`](super::ActMul).
    pub gate: Option<Activation>,
    /// `[m, n]`, of the same dtype or, without a gate, f32. Or quantized, e4m3 or i8 (`n` and address multiples of 4):
    /// the result in x's dtype divided by `scale`, rounded to nearest even, saturating.
    pub out: SliceMut<'a>,
    /// Adds the result to what `out` holds (a residual stream), both rounded to `out`'s dtype. Not with a gate or a
    /// quantized `out`.
    pub accumulate: bool,
    /// f32 `[1]`, above 0, exactly if `out` is quantized: a static activation scale, by which codes are dequantized.
    pub scale: Option<Slice<'a>>,
    /// u32, aligned to 16 bytes, zero before first use. Without it split-K is off, and products with few rows leave
    /// most SMs idle. Launches that share it must run one after another, as on one stream.
    /// [`WORKSPACE`](Self::WORKSPACE) words are enough for all layers that profit.
    pub workspace: Option<SliceMut<'a>>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl MatMul<'_> {
    /// Words of a workspace: 16 MiB hold the split-K sums of 16 rows for 8192 outputs and 16384 inputs, which is a tile
    /// per SM. Larger products run without split-K.
    pub const WORKSPACE: usize = 4 << 20;

    /// Consecutive rows of the gate projection in an interleaved weight.
    pub const GATES: usize = BURRSTONE_MATMUL_GATES as usize;

    /// Rows of an interleaved gated weight with `n` outputs.
    pub const fn gated_rows(n: usize) -> usize {
        gated_rows(n)
    }

    /// Checks shapes, picks a plan for the device and launches it.
    ///
    /// # Errors
    /// A slice is too short, misaligned or of the wrong dtype; this build has no variant for the device; the device
    /// failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let shape = self.shape()?;
        let workspace = self.workspace.as_ref().map_or(0, SliceMut::len);
        let mut plan = MatMulPlan::choose(&CostModel::of(stream.info()), &shape, workspace)?;
        // Multicast needs TMA copies.
        plan.pair = plan.pair.filter(|_| plan.copies_by_tma(&shape, self.x.address() | self.weight.address()));
        self.launch_plan(stream, &plan)
    }

    /// Launches cuBLASLt instead, without gate, scale or accumulation, and with a bias only if `out` has x's dtype. The
    /// engine never chooses it: its bits differ, and a row's bits may depend on other rows. It loads kernels lazily, so
    /// run it once before capturing a graph.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); cuBLASLt has no algorithm for the problem, or failed.
    #[cfg(feature = "cuda")]
    pub fn launch_cublas_lt(self, library: &CublasLt) -> Result<()> {
        let shape = self.shape()?;
        self.check_operands(&shape)?;
        let Self { x, weight, bias, gate, out, accumulate, scale, workspace, m, n, k } = self;
        let (dtype, out_dtype) = (x.dtype(), out.dtype());
        let legal = [dtype, DType::F32];
        CHECK.dtype("out", out_dtype, if bias.is_some() { &legal[..1] } else { &legal })?;
        for (field, found) in [("gate", gate.is_some()), ("accumulate", accumulate), ("scale", scale.is_some())] {
            if found {
                return Err(Error::operator(CHECK.0, field, "none for cuBLASLt", "one"));
            }
        }
        let MatMulWeight::Dense(weight) = weight else {
            return Err(Error::operator(CHECK.0, "weight", "a dense one for cuBLASLt", "codes"));
        };
        if k == 0 {
            return Err(Error::operator(CHECK.0, "k", "at least 1 for cuBLASLt", k));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        // The part behind the counters is free for the library.
        let workspace = workspace.and_then(|all| {
            let len = all.len();
            all.range(BURRSTONE_MATMUL_COUNTERS as usize..len)
        });
        let workspace = workspace.filter(|sums| sums.dtype() == DType::U32 && sums.address().is_multiple_of(16));
        let product = Product {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |bias| bias.address()),
            out: out.address(),
            dtype,
            out_dtype,
            m,
            n,
            k,
            workspace: workspace.map_or((0, 0), |sums| (sums.address(), 4 * sums.len())),
        };
        // SAFETY: every slice was checked against the shape.
        unsafe { library.enqueue(&product) }
    }

    fn check_operands(&self, shape: &MatMulShape) -> Result<()> {
        let (dtype, rows) = (self.x.dtype(), shape.weight_rows());
        CHECK.len("x", self.x, &[self.m, self.k])?;
        match self.weight {
            MatMulWeight::Dense(weight) => CHECK.slice("weight", weight, dtype, &[rows, self.k])?,
            MatMulWeight::Codes(weight) => {
                let (expected, found) = ([rows, self.k], [weight.n, weight.k]);
                if found != expected || weight.dtype != dtype {
                    let found = format!("{found:?} for {}", weight.dtype);
                    return Err(Error::operator(CHECK.0, "weight", format!("{expected:?} for {dtype}"), found));
                }
                let address = self.x.address();
                if !address.is_multiple_of(16) {
                    return Err(Error::operator(CHECK.0, "x", "a multiple of 16 bytes", format!("{address:#x}")));
                }
            }
        }
        if let Some(bias) = self.bias {
            CHECK.slice("bias", bias, dtype, &[rows])?;
        }
        CHECK.len("out", self.out.as_slice(), &[self.m, self.n])
    }

    fn shape(&self) -> Result<MatMulShape> {
        let (dtype, out) = (self.x.dtype(), self.out.dtype());
        CHECK.dtype("x", dtype, &[DType::BF16, DType::F16])?;
        let legal = [DType::F32, dtype, DType::E4M3, DType::I8];
        CHECK.dtype("out", out, if self.gate.is_some() { &legal[1..] } else { &legal })?;
        let (gated, accumulate) = (self.gate.is_some(), self.accumulate);
        if accumulate && (gated || out.size() == 1) {
            let found = if gated { "one with a gate".to_owned() } else { format!("one to {out}") };
            return Err(Error::operator(CHECK.0, "accumulate", "a product without a gate, of numbers", found));
        }
        Ok(MatMulShape { dtype, out, m: self.m, n: self.n, k: self.k, gated, accumulate, weight: self.weight.kind() })
    }

    /// Launches a given plan, for tuning and tests. All plans that a device can run give the same bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem; there are fewer K slices than splits, or
    /// the workspace is too small; the variant has no cluster form, or not for these addresses or with split-K.
    pub fn launch_plan(self, stream: &Stream, plan: &MatMulPlan) -> Result<()> {
        let (shape, &MatMulPlan { variant, splits, pair, .. }) = (self.shape()?, plan);
        self.check_operands(&shape)?;
        let rows = shape.weight_rows();
        let Self { x, weight, bias, gate, out, accumulate, scale, workspace, m, n, k } = self;
        let (codes, scale) = quantized(&out, scale, n)?;
        let call = Call { kernel: &MATMUL, key: &shape.key(stream.arch()) };
        call.check(variant)?;
        let boxes = plan.copies_by_tma(&shape, x.address() | weight.address());
        if let Some(pair) = pair
            && !(boxes && splits == 1 && plan.may_pair())
        {
            let expected = "none but with boxes, one split, and halves of a tile of eight rows";
            return Err(Error::operator(CHECK.0, "pair", expected, format!("{pair:?} for {}", variant.name)));
        }
        let workspace = match workspace {
            _ if splits == 1 => 0,
            _ if splits == 0 || splits > shape.k_slices() => {
                let expected = format!("1 to {}, the K slices", shape.k_slices().max(1));
                return Err(Error::operator(CHECK.0, "splits", expected, splits));
            }
            None => return Err(Error::operator(CHECK.0, "workspace", format!("one for {splits} splits"), "none")),
            Some(workspace) => {
                CHECK.slice("workspace", workspace.as_slice(), DType::U32, &[plan.workspace(&shape)])?;
                let address = workspace.address();
                if !address.is_multiple_of(16) {
                    let found = format!("{address:#x}");
                    return Err(Error::operator(CHECK.0, "workspace", "a multiple of 16 bytes", found));
                }
                address
            }
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        let [x_boxes, weight_boxes] = if boxes {
            let [box_m, box_n] = plan.tma_box();
            let of_weight = match weight {
                MatMulWeight::Dense(weight) => matrix_boxes(stream, weight, [rows, k], box_n)?,
                MatMulWeight::Codes(_) => NO_BOXES,
            };
            [matrix_boxes(stream, x, [m, k], box_m)?, of_weight]
        } else {
            [NO_BOXES; 2]
        };
        let codes_of_weight = match weight {
            MatMulWeight::Dense(_) => None,
            MatMulWeight::Codes(codes) => Some(codes),
        };
        let args = matmul_args {
            x_boxes,
            weight_boxes,
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |bias| bias.address()),
            out: out.address(),
            scale,
            workspace,
            m: CHECK.rows("m", m)?,
            n: CHECK.size("n", rows)?,
            k: CHECK.size("k", k)?,
            splits: CHECK.size("splits", splits)?,
            columns: CHECK.size("n", n)?,
            activation: gate.map_or(0, code),
            pair: match pair {
                None => 0,
                Some(MatMulPair::X) => BURRSTONE_MATMUL_PAIR_X,
                Some(MatMulPair::Weight) => BURRSTONE_MATMUL_PAIR_WEIGHT,
            },
            codes,
            accumulate: u32::from(accumulate),
            code_group_bits: codes_of_weight.map_or(0, |of| of.format.group_bits),
            code_scales: codes_of_weight.map_or(0, |of| of.scales.address()),
            code_table: codes_of_weight.and_then(|of| of.table).map_or(0, |table| table.address()),
            code_floats: codes_of_weight.map_or(0, |of| u32::from(of.format.zero.is_some())),
            code_zero: codes_of_weight.and_then(|of| of.format.zero).map_or(0, u32::from),
            padding: [0; 4],
        };
        CHECK.rows("tiles", plan.items(&shape))?;
        let blocks = [plan.blocks(&CostModel::of(stream.info()), &shape), 1, 1];
        let shape = format_args!("[{m}, {k}] × [{rows}, {k}]ᵀ of {} to {} in {splits}", x.dtype(), out.dtype());
        let cluster = if pair.is_some() { 2 } else { 1 };
        // SAFETY: every slice was checked against the shape, the workspace against the variant's tiles.
        unsafe { call.launch_clusters(stream, variant, blocks, cluster, &args, &shape) }
    }
}

/// The kernel's code for a quantized `out` of `n` columns, and the address of its scale; zeros if it is not quantized.
fn quantized(out: &SliceMut<'_>, scale: Option<Slice<'_>>, n: usize) -> Result<(u32, u64)> {
    let codes = match out.dtype() {
        DType::E4M3 => BURRSTONE_MATMUL_E4M3,
        DType::I8 => BURRSTONE_MATMUL_I8,
        other if scale.is_some() => return Err(Error::operator(CHECK.0, "scale", format!("none for {other}"), "one")),
        _ => return Ok((0, 0)),
    };
    let Some(scale) = scale else {
        return Err(Error::operator(CHECK.0, "scale", format!("one for {}", out.dtype()), "none"));
    };
    CHECK.slice("scale", scale, DType::F32, &[1])?;
    if !n.is_multiple_of(4) {
        return Err(Error::operator(CHECK.0, "n", format!("a multiple of 4 for {}", out.dtype()), n));
    }
    if !out.address().is_multiple_of(4) {
        return Err(Error::operator(CHECK.0, "out", "a multiple of 4 bytes", format!("{:#x}", out.address())));
    }
    Ok((codes, scale.address()))
}

/// Tensor map of 16-bit rows `[rows, k]`, in boxes of a stage's K elements by `side` rows, as wgmma reads them.
fn matrix_boxes(stream: &Stream, matrix: Slice<'_>, [rows, k]: [usize; 2], side: usize) -> Result<tensor_map> {
    let row_bytes = k * matrix.dtype().size();
    let boxes = TmaBoxes {
        address: matrix.address(),
        element_bytes: matrix.dtype().size() as u32,
        dims: &[k as u64, rows as u64],
        strides: &[row_bytes as u64],
        sides: &[STAGE as u32, side as u32],
        swizzle: Swizzle::Bytes128,
    };
    Ok(tensor_map { opaque: stream.tensor_map(&boxes)? })
}
