//! Every kernel by name with the types of its parameters: the one place where host and device agree.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule, DeviceRepr, LaunchConfig, PushKernelArg};

use crate::graph::{note, word};
use crate::{CudaError, Device, Element, Slice};

/// A kernel and the sizes of its parameters in bytes, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its name in the device code.
    pub name: &'static str,
    /// One per parameter.
    pub arguments: &'static [usize],
}

/// A pointer parameter that the kernel reads.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct In<T>(u64, PhantomData<fn() -> T>);

/// A pointer parameter that the kernel writes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Out<T>(u64, PhantomData<fn() -> T>);

// SAFETY: a device address, passed as its eight bytes.
unsafe impl<T: Copy> DeviceRepr for In<T> {}
// SAFETY: as above.
unsafe impl<T: Copy> DeviceRepr for Out<T> {}

impl<T: Element> From<Slice<'_, T>> for In<T> {
    fn from(slice: Slice<'_, T>) -> Self {
        Self(slice.address(), PhantomData)
    }
}

impl<T: Element> From<Slice<'_, T>> for Out<T> {
    fn from(slice: Slice<'_, T>) -> Self {
        Self(slice.address(), PhantomData)
    }
}

impl<T> In<T> {
    /// No memory: what a kernel takes for an operand that is not there.
    pub(crate) const NONE: Self = Self(0, PhantomData);
}

/// Blocks, threads of a block, and dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: (u32, u32, u32),
    pub(crate) block: (u32, u32, u32),
    pub(crate) shared: u32,
}

impl Shape {
    /// `count` blocks of `threads`.
    pub(crate) const fn blocks(count: usize, threads: u32) -> Self {
        Self::grid(count, 1, threads)
    }

    /// `x` by `y` blocks of `threads`.
    #[allow(clippy::cast_possible_truncation)] // a launch that does not fit is refused by the driver, and shapes are bounded at load
    pub(crate) const fn grid(x: usize, y: usize, threads: u32) -> Self {
        Self {
            grid: (x as u32, y as u32, 1),
            block: (threads, 1, 1),
            shared: 0,
        }
    }

    /// Enough blocks of `threads` for `count` threads.
    pub(crate) const fn threads(count: usize, threads: u32) -> Self {
        Self::blocks(count.div_ceil(threads as usize), threads)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.grid.0 == 0 || self.grid.1 == 0
    }
}

macro_rules! kernels {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// Every kernel that the host launches.
        pub const TABLE: &[Signature] = &[
            $(Signature { name: stringify!($name), arguments: &[$(size_of::<$type>()),*] },)*
        ];

        /// The loaded kernels.
        #[derive(Debug)]
        pub(crate) struct Functions {
            $(pub(crate) $name: CudaFunction,)*
        }

        impl Functions {
            pub(crate) fn load(module: &Arc<CudaModule>) -> Result<Self, CudaError> {
                Ok(Self {
                    $($name: module.load_function(stringify!($name)).map_err(CudaError::of(stringify!($name)))?,)*
                })
            }
        }

        impl Device {
            $(
                #[allow(clippy::too_many_arguments)] // a kernel's parameters are what they are
                pub(crate) fn $name(&self, shape: Shape, $($argument: $type),*) -> Result<(), CudaError> {
                    let noted = note(stringify!($name), &self.functions.$name, shape, &[$(word(&$argument)),*]);
                    if noted || shape.is_empty() {
                        return Ok(());
                    }
                    let mut launch = self.stream().launch_builder(&self.functions.$name);
                    $(launch.arg(&$argument);)*
                    let Shape { grid, block, shared } = shape;
                    let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: shared };
                    // SAFETY: the parameters have the kernel's types (held by a test over the device code), and the caller has checked
                    // that its slices hold what the kernel touches for this shape.
                    unsafe { launch.launch(config) }.map_err(CudaError::of(stringify!($name)))?;
                    Ok(())
                }
            )*
        }
    };
}

kernels! {
    split_blocks(blocks: In<u8>, heads: Out<u8>, body: Out<u8>, bytes: u64, block: u32, at: u32, head: u32);
    quantize_q8(x: In<f32>, codes: Out<i8>, scales: Out<f32>, blocks: u32);
    quantize_q8_k(x: In<f32>, codes: Out<i8>, scales: Out<f32>, blocks: u32);
    matvec_q8_0(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matvec_q2_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matvec_q4_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matvec_iq2_xxs(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matvec_mxfp4(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matmul_q8_0(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matmul_q2_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matmul_q4_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matmul_iq2_xxs(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matmul_mxfp4(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    tiles_q8_0(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    tiles_q2_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    tiles_q4_k(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    tiles_iq2_xxs(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    tiles_mxfp4(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>, rows: u32, cols: u32,
        tokens: u32,
    );
    matvec_f32(weights: In<u8>, x: In<f32>, y: Out<f32>, rows: u32, cols: u32, tokens: u32);
    matvec_f16(weights: In<u8>, x: In<f32>, y: Out<f32>, rows: u32, cols: u32, tokens: u32);
    matmul_f32(weights: In<u8>, x: In<f32>, y: Out<f32>, rows: u32, cols: u32, tokens: u32);
    matmul_f16(weights: In<u8>, x: In<f32>, y: Out<f32>, rows: u32, cols: u32, tokens: u32);
    gate_up_q8_0_one(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q8_0_one(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q8_0_many(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q8_0_many(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q2_k_one(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q2_k_one(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q2_k_many(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q2_k_many(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q4_k_one(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q4_k_one(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q4_k_many(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q4_k_many(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_iq2_xxs_one(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    gate_up_mxfp4_one(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_iq2_xxs_one(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    down_mxfp4_one(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_iq2_xxs_many(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    gate_up_mxfp4_many(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_iq2_xxs_many(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    down_mxfp4_many(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q8_0_tiles(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q8_0_tiles(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q2_k_tiles(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q2_k_tiles(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_q4_k_tiles(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_q4_k_tiles(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_iq2_xxs_tiles(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_iq2_xxs_tiles(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>, rows: u32, cols: u32,
    );
    gate_up_mxfp4_tiles(
        gate_heads: In<u8>, gate_body: In<u8>, up_heads: In<u8>, up_body: In<u8>, codes: In<i8>,
        scales: In<f32>, order: In<u32>, starts: In<u32>, weights: In<f32>, out: Out<f32>,
        rows: u32, cols: u32, used: u32, bound: f32,
    );
    down_mxfp4_tiles(
        heads: In<u8>, body: In<u8>, codes: In<i8>, scales: In<f32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>, rows: u32, cols: u32,
    );
    swiglu(gate: Out<f32>, up: In<f32>, count: u32, bound: f32);
    combine_experts(shared: Out<f32>, parts: In<f32>, count: u32, used: u32, width: u32);
    route(
        logits: Out<f32>, bias: In<f32>, table: In<i32>, tokens: In<u32>, experts: Out<u32>,
        weights: Out<f32>, count: u32, used: u32, scale: f32,
    );
    group_choices(experts: In<u32>, order: Out<u32>, starts: Out<u32>, choices: u32, count: u32);
    embed(
        heads: In<u8>, table: In<u8>, tokens: In<u32>, out: Out<f32>, count: u32, width: u32, streams: u32,
        bytes: u32,
    );
    argmax(logits: In<f32>, out: Out<u32>, width: u32);
    rms_norm(x: In<f32>, weight: In<f32>, y: Out<f32>, width: u32, eps: f32);
    norm_rotate_heads(
        x: Out<f32>, rotations: In<f32>, count: u32, heads: u32, dim: u32, rotary: u32, eps: f32,
    );
    rotate_rows(x: Out<f32>, rotations: In<f32>, pairs: u32, per: u32, dim: u32, rotary: u32, direction: f32);
    encode_kv(x: In<f32>, out: Out<u8>, rows: u32, dim: u32, rotary: u32, first: u32, ring: u32);
    encode_indexer(x: In<f32>, out: Out<u8>, rows: u32, dim: u32, first: u32);
    index_queries(x: In<f32>, codes: Out<i8>, scales: Out<f32>, heads: u32, dim: u32);
    index_scores(
        codes: In<i8>, scales: In<f32>, weights: In<f32>, rows: In<u8>, seen: In<u32>, scores: Out<f32>,
        stride: u32, heads: u32, dim: u32, factor: f32,
    );
    pick_rows(scores: In<f32>, seen: In<u32>, picks: Out<u32>, counts: Out<u32>, stride: u32, k: u32);
    attend(
        queries: In<f32>, window: In<u8>, compressed: In<u8>, picks: In<u32>, counts: In<u32>, seen: In<u32>,
        positions: In<u32>, sinks: In<f32>, out: Out<f32>, heads: u32, dim: u32, rotary: u32, reach: u32,
        ring: u32, k: u32, room: u32, scale: f32,
    );
    append_state(
        values: In<f32>, gates: In<f32>, bias: In<f32>, state: Out<f32>, count: u32, width: u32, first: u32,
        ratio: u32, ring: u32,
    );
    pool_groups(
        state: In<f32>, out: Out<f32>, count: u32, width: u32, out_width: u32, first_group: u32, ratio: u32,
        ring: u32,
    );
    hyper_mix(
        raw: Out<f32>, streams: In<f32>, scale: In<f32>, base: In<f32>, n: u32, width: u32, iterations: u32,
        eps: f32, rms_eps: f32,
    );
    head_mix(
        raw: Out<f32>, streams: In<f32>, scale: In<f32>, base: In<f32>, n: u32, width: u32, eps: f32,
        rms_eps: f32,
    );
    gather_streams(
        mix: In<f32>, streams: In<f32>, out: Out<f32>, count: u32, n: u32, width: u32, stride: u32,
    );
    scatter_streams(mix: In<f32>, block: In<f32>, streams: Out<f32>, count: u32, n: u32, width: u32);
    peak_bytes(operands: In<u32>, out: Out<i32>, rounds: u32);
    copy_segments(from: In<u64>, to: In<u64>, bytes: In<u32>);
}
