//! `out = x · weightᵀ + bias`, added to what is there or not, or `activation(gate) · up` of two such products.

#[cfg(feature = "cuda")]
use super::abi::BURRSTONE_MATMUL_COUNTERS;
use super::abi::{
    BURRSTONE_MATMUL_E4M3, BURRSTONE_MATMUL_GATES, BURRSTONE_MATMUL_I8, BURRSTONE_MATMUL_PAIR_WEIGHT,
    BURRSTONE_MATMUL_PAIR_X, matmul_args, tensor_map,
};
use super::act_mul::code;
use super::call::{Call, Check};
use super::cost::Machine;
use super::matmul_plan::{MatMulPair, MatMulPlan, MatMulShape, STAGE};
use super::tables::MATMUL;
use crate::device::{Boxes, Slice, SliceMut, Stream, Swizzle};
#[cfg(feature = "cuda")]
use crate::device::{CublasLt, Product};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::Activation;

const CHECK: Check = Check("matmul");

/// A linear layer, on the tensor cores. The bits of an output depend on its own row of `x` and of the weight, on the
/// device's architecture, and on nothing else: not on the rows beside it, nor on how the work is divided.
pub struct MatMul<'a> {
    /// `[m, k]` of bf16 or f16.
    pub x: Slice<'a>,
    /// `[n, k]`, of the same dtype. With a gate `[gated_rows(n), k]`: [`GATES`](Self::GATES) rows of the gate's
    /// projection, as many of up's, and so on; the last ones are filled up with rows whose results nobody sees.
    pub weight: Slice<'a>,
    /// `[n]`, or as many as the weight has rows, of the same dtype.
    pub bias: Option<Slice<'a>>,
    /// `out = activation(gate) · up`: both products are rounded to `out`'s dtype, and so is what they make, as
    /// [`ActMul`](super::ActMul) has it, bit by bit.
    pub gate: Option<Activation>,
    /// `[m, n]`, of the same dtype or, without a gate, f32. Or quantized, e4m3 or i8, with `n` and the address multiples of
    /// 4: what would be there otherwise, in x's dtype, divided by `scale`, rounded to nearest (ties to even), saturating.
    pub out: SliceMut<'a>,
    /// Adds to what `out` holds, a residual stream, what would be there otherwise: both are of `out`'s dtype, and so is their
    /// sum. Without a gate, and of an `out` that is not quantized.
    pub accumulate: bool,
    /// f32 `[1]`, above 0: of a quantized `out` and only there, as checkpoints with static scales of activations have it. What
    /// codes are multiplied by to get results back.
    pub scale: Option<Slice<'a>>,
    /// u32 at a multiple of 16 bytes, zeros before its first use; without it no two blocks share a tile, and few rows
    /// leave most of the device idle. A launch leaves it to the next one: launches that share it run one after the other,
    /// as those of one stream do. [`WORKSPACE`](Self::WORKSPACE) words are enough for the layers that profit.
    pub workspace: Option<SliceMut<'a>>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl MatMul<'_> {
    /// Words of a workspace: 16 MiB hold the sums of 16 rows through a layer of 8192 outputs and 16384 inputs, which has
    /// a tile for every multiprocessor. What does not fit is computed without.
    pub const WORKSPACE: usize = 4 << 20;

    /// Rows of a gate's projection that lie side by side.
    pub const GATES: usize = BURRSTONE_MATMUL_GATES as usize;

    /// Rows of the weight of a gated product with `n` columns.
    pub const fn gated_rows(n: usize) -> usize {
        n.div_ceil(Self::GATES).saturating_mul(2 * Self::GATES)
    }

    /// Checks the shapes, picks the plan for the device, and launches it.
    ///
    /// # Errors
    /// A slice is too short, misaligned or of the wrong dtype; this build has no variant for the device; the device
    /// failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let shape = self.shape()?;
        let workspace = self.workspace.as_ref().map_or(0, SliceMut::len);
        let mut plan = MatMulPlan::choose(&Machine::of(stream.info()), &shape, workspace)?;
        // Threads that copy one by one bring nothing to others.
        plan.pair = plan.pair.filter(|_| plan.copies_boxes(&shape, self.x.address() | self.weight.address()));
        self.launch_plan(stream, &plan)
    }

    /// The same by NVIDIA's library, without a gate or a scale, to an `out` that is overwritten, and with a bias only where
    /// `out` is of x's dtype. Nothing here ever chooses it: its bits are its own, and those of a row may depend on the rows
    /// beside it. It loads its kernels when it first needs them, so what a graph is to capture should have run once before.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the library has nothing for the problem, or failed.
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
        if k == 0 {
            return Err(Error::operator(CHECK.0, "k", "at least 1 for cuBLASLt", k));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        // The library may use what is behind the counters: nobody expects anything there.
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
        CHECK.slice("weight", self.weight, dtype, &[rows, self.k])?;
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
        Ok(MatMulShape { dtype, out, m: self.m, n: self.n, k: self.k, gated, accumulate })
    }

    /// The same with a plan of the caller's choice, for tuning and tests. All that a device can run give the same bits.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); the variant is not one for this problem; there are fewer spans than splits, or the
    /// workspace is too small for them; the variant's blocks cannot be pairs, or not with these addresses, or tiles are
    /// split.
    pub fn launch_plan(self, stream: &Stream, plan: &MatMulPlan) -> Result<()> {
        let (shape, &MatMulPlan { variant, splits, pair, .. }) = (self.shape()?, plan);
        self.check_operands(&shape)?;
        let rows = shape.weight_rows();
        let Self { x, weight, bias, gate, out, accumulate, scale, workspace, m, n, k } = self;
        let (codes, scale) = quantized(&out, scale, n)?;
        let call = Call { kernel: &MATMUL, key: &shape.key(stream.arch()) };
        call.check(variant)?;
        let boxes = plan.copies_boxes(&shape, x.address() | weight.address());
        if let Some(pair) = pair
            && !(boxes && splits == 1 && plan.may_pair())
        {
            let expected = "none but with boxes, one split, and halves of a tile of eight rows";
            return Err(Error::operator(CHECK.0, "pair", expected, format!("{pair:?} for {}", variant.name)));
        }
        let workspace = match workspace {
            _ if splits == 1 => 0,
            _ if splits == 0 || splits > shape.spans() => {
                let expected = format!("1 to {}, the spans of k", shape.spans().max(1));
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
            let [box_m, box_n] = plan.boxes();
            [matrix_boxes(stream, x, [m, k], box_m)?, matrix_boxes(stream, weight, [rows, k], box_n)?]
        } else {
            [tensor_map { opaque: [0; 16] }; 2]
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
            padding: [0; 11],
        };
        CHECK.rows("tiles", plan.items(&shape))?;
        let blocks = [plan.blocks(&Machine::of(stream.info()), &shape), 1, 1];
        let shape = format_args!("[{m}, {k}] × [{rows}, {k}]ᵀ of {} to {} in {splits}", x.dtype(), out.dtype());
        let cluster = if pair.is_some() { 2 } else { 1 };
        // SAFETY: every slice was checked against the shape, the workspace against the variant's tiles.
        unsafe { call.launch_clusters(stream, variant, blocks, cluster, &args, &shape) }
    }
}

/// The kernel's code for a quantized `out` of `n` columns, and the address of its scale; zeros where it is not quantized.
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

/// Rows `[rows, k]` of 16-bit numbers in boxes of a stage's elements of `side` rows, as products of warpgroups read them.
fn matrix_boxes(stream: &Stream, matrix: Slice<'_>, [rows, k]: [usize; 2], side: usize) -> Result<tensor_map> {
    let row_bytes = k * matrix.dtype().size();
    let boxes = Boxes {
        address: matrix.address(),
        element_bytes: matrix.dtype().size() as u32,
        dims: &[k as u64, rows as u64],
        strides: &[row_bytes as u64],
        sides: &[STAGE as u32, side as u32],
        swizzle: Swizzle::Bytes128,
    };
    Ok(tensor_map { opaque: stream.tensor_map(&boxes)? })
}
