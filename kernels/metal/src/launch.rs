//! Every kernel by name with its buffers and constants: the one place where host and device agree.

use std::marker::PhantomData;

use crate::{Binding, Device, Element, Launch, MetalError, Shape, Slice};

/// A buffer of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Bytes of an element.
    pub size: usize,
    /// Whether the kernel writes it.
    pub writes: bool,
}

/// A kernel: its buffers in order, and the bytes of the constants that follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in the source.
    pub name: &'static str,
    /// `[[buffer(0)]]` and on.
    pub buffers: &'static [Parameter],
    /// Bytes of the constants.
    pub constants: usize,
}

/// A buffer that the kernel reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct In<T>(Binding, PhantomData<fn() -> T>);

/// A buffer that the kernel writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out<T>(Binding, PhantomData<fn() -> T>);

impl<T> In<T> {
    const PARAMETER: Parameter = Parameter {
        size: size_of::<T>(),
        writes: false,
    };
}

impl<T> Out<T> {
    const PARAMETER: Parameter = Parameter {
        size: size_of::<T>(),
        writes: true,
    };
}

impl<T: Element> From<Slice<'_, T>> for In<T> {
    fn from(slice: Slice<'_, T>) -> Self {
        Self(slice.binding(), PhantomData)
    }
}

impl<T: Element> From<Slice<'_, T>> for Out<T> {
    fn from(slice: Slice<'_, T>) -> Self {
        Self(slice.binding(), PhantomData)
    }
}

/// A constant, four bytes of a kernel's structure.
pub(crate) trait Constant: Copy {
    fn bytes(self) -> [u8; 4];
}

impl Constant for u32 {
    fn bytes(self) -> [u8; 4] {
        self.to_ne_bytes()
    }
}

impl Constant for f32 {
    fn bytes(self) -> [u8; 4] {
        self.to_ne_bytes()
    }
}

/// Kernels with the same parameters share a line.
macro_rules! kernels {
    ($($($name:ident),+: $parameters:tt;)*) => { table! { $($($name $parameters;)+)* } };
}

macro_rules! table {
    ($($name:ident($($buffer:ident: $kind:ident<$of:ty>),*; $($constant:ident: $type:ty),* $(,)?);)*) => {
        /// Every kernel that the host launches.
        pub static TABLE: &[Kernel] = &[
            $(Kernel {
                name: stringify!($name),
                buffers: &[$($kind::<$of>::PARAMETER),*],
                constants: 0 $(+ size_of::<$type>())*,
            },)*
        ];

        /// Places of the kernels in the table.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)] // the kernels' names
        #[derive(Clone, Copy)]
        enum Number { $($name,)* }

        impl Device {
            $(
                #[allow(clippy::too_many_arguments)] // a kernel's parameters are what they are
                pub(crate) fn $name(&self, shape: Shape, $($buffer: $kind<$of>,)* $($constant: $type),*) -> Result<(), MetalError> {
                    let number = Number::$name as usize;
                    let constants: [[u8; 4]; TABLE_CONSTANTS(&[$(stringify!($constant)),*])] = [$($constant.bytes()),*];
                    self.launch(&Launch {
                        kernel: &TABLE[number],
                        number,
                        shape,
                        buffers: &[$($buffer.0),*],
                        constants: constants.as_flattened(),
                    })
                }
            )*
        }
    };
}

#[allow(non_snake_case)] // a length in the macro above
const fn TABLE_CONSTANTS(names: &[&str]) -> usize {
    names.len()
}

kernels! {
    quantize_q8, quantize_q8_k: (x: In<f32>, codes: Out<i8>, scales: Out<f32>; blocks: u32);
    matvec_q8_0, matvec_q2_k, matvec_q4_k, matvec_iq2_xxs, matvec_mxfp4,
    matmul_q8_0, matmul_q2_k, matmul_q4_k, matmul_iq2_xxs, matmul_mxfp4,
    tiles_q8_0, tiles_q2_k, tiles_q4_k, tiles_iq2_xxs, tiles_mxfp4: (
        weights: In<u8>, codes: In<i8>, scales: In<f32>, y: Out<f32>; rows: u32, cols: u32, tokens: u32,
    );
    matvec_f32, matvec_f16, matmul_f32, matmul_f16: (
        weights: In<u8>, x: In<f32>, y: Out<f32>; rows: u32, cols: u32, tokens: u32,
    );
    gate_up_q8_0_one, gate_up_q2_k_one, gate_up_q4_k_one, gate_up_iq2_xxs_one, gate_up_mxfp4_one,
    gate_up_q8_0_many, gate_up_q2_k_many, gate_up_q4_k_many, gate_up_iq2_xxs_many, gate_up_mxfp4_many,
    gate_up_q8_0_tiles, gate_up_q2_k_tiles, gate_up_q4_k_tiles, gate_up_iq2_xxs_tiles, gate_up_mxfp4_tiles: (
        gate: In<u8>, up: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>,
        starts: In<u32>, weights: In<f32>, out: Out<f32>;
        rows: u32, cols: u32, used: u32, grouped: u32, bound: f32,
    );
    down_q8_0_one, down_q2_k_one, down_q4_k_one, down_iq2_xxs_one, down_mxfp4_one,
    down_q8_0_many, down_q2_k_many, down_q4_k_many, down_iq2_xxs_many, down_mxfp4_many,
    down_q8_0_tiles, down_q2_k_tiles, down_q4_k_tiles, down_iq2_xxs_tiles, down_mxfp4_tiles: (
        down: In<u8>, codes: In<i8>, scales: In<f32>, experts: In<u32>, order: In<u32>, starts: In<u32>,
        out: Out<f32>; rows: u32, cols: u32, used: u32, grouped: u32, bound: f32,
    );
    swiglu: (gate: Out<f32>, up: In<f32>; count: u32, bound: f32);
    combine_experts: (shared: Out<f32>, parts: In<f32>; count: u32, used: u32, width: u32);
    route: (
        logits: Out<f32>, bias: In<f32>, table: In<i32>, tokens: In<u32>, experts: Out<u32>, weights: Out<f32>;
        count: u32, used: u32, biased: u32, by_token: u32, scale: f32,
    );
    group_choices: (experts: In<u32>, order: Out<u32>, starts: Out<u32>; choices: u32, count: u32);
    embed: (table: In<u8>, tokens: In<u32>, out: Out<f32>; count: u32, width: u32, streams: u32, bytes: u32);
    argmax: (logits: In<f32>, out: Out<u32>; width: u32);
    rms_norm: (x: In<f32>, weight: In<f32>, y: Out<f32>; width: u32, eps: f32);
    norm_rotate_heads: (x: Out<f32>, rotations: In<f32>; count: u32, heads: u32, dim: u32, rotary: u32, eps: f32);
    rotate_rows: (x: Out<f32>, rotations: In<f32>; pairs: u32, per: u32, dim: u32, rotary: u32, direction: f32);
    encode_kv: (x: In<f32>, out: Out<u8>; rows: u32, dim: u32, rotary: u32, first: u32, ring: u32);
    encode_indexer: (x: In<f32>, out: Out<u8>; rows: u32, dim: u32, first: u32);
    index_queries: (x: In<f32>, codes: Out<i8>, scales: Out<f32>; heads: u32, dim: u32);
    index_scores: (
        codes: In<i8>, scales: In<f32>, weights: In<f32>, rows: In<u8>, seen: In<u32>, scores: Out<f32>;
        stride: u32, heads: u32, dim: u32, factor: f32,
    );
    pick_rows: (scores: In<f32>, seen: In<u32>, picks: Out<u32>, counts: Out<u32>; stride: u32, k: u32);
    attend: (
        queries: In<f32>, window: In<u8>, compressed: In<u8>, picks: In<u32>, counts: In<u32>,
        positions: In<u32>, sinks: In<f32>, weights: Out<f32>, out: Out<f32>;
        heads: u32, dim: u32, rotary: u32, reach: u32, ring: u32, k: u32, picked: u32, room: u32, scale: f32,
    );
    append_state: (
        values: In<f32>, gates: In<f32>, bias: In<f32>, state: Out<f32>;
        count: u32, width: u32, first: u32, ratio: u32, ring: u32,
    );
    pool_groups: (
        state: In<f32>, out: Out<f32>;
        count: u32, width: u32, out_width: u32, first_group: u32, ratio: u32, ring: u32,
    );
    hyper_mix: (
        raw: Out<f32>, streams: In<f32>, scale: In<f32>, base: In<f32>;
        n: u32, width: u32, iterations: u32, eps: f32, rms_eps: f32,
    );
    head_mix: (
        raw: Out<f32>, streams: In<f32>, scale: In<f32>, base: In<f32>;
        n: u32, width: u32, eps: f32, rms_eps: f32,
    );
    gather_streams: (mix: In<f32>, streams: In<f32>, out: Out<f32>; count: u32, n: u32, width: u32, stride: u32);
    scatter_streams: (mix: In<f32>, block: In<f32>, streams: Out<f32>; count: u32, n: u32, width: u32);
    copy_bytes: (from: In<u8>, to: Out<u8>; bytes: u32);
}
