//! Launches that repeat from token to token: noted down, and run as a graph.
//!
//! The host's code runs as ever, but its launches are noted instead of submitted. Where the same kernels were noted before, only nodes whose
//! parameters are others than last time are changed (positions, slots, addresses of another session); a launch of no blocks is a node that is disabled, so
//! that a row which only every fourth token completes makes no other graph. Then one call starts them all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DeviceRepr, sys};

use crate::launch::Shape;
use crate::{CudaError, Device};

/// Graphs that are kept for a place: decode has one for every number of sessions at a time, and another once the indexer chooses.
const MOST: usize = 8;

thread_local! {
    /// What this thread has noted, while it does.
    static NOTED: RefCell<Option<Notes>> = const { RefCell::new(None) };
}

/// Launches in order.
#[derive(Debug, Default)]
struct Notes {
    launches: Vec<Launch>,
    /// Parameters, each in the first bytes of eight.
    words: Vec<u64>,
}

#[derive(Debug)]
struct Launch {
    name: &'static str,
    function: sys::CUfunction,
    shape: Shape,
    words: Range<usize>,
}

/// A parameter's bytes.
pub(crate) fn word<T: DeviceRepr>(value: &T) -> u64 {
    const { assert!(size_of::<T>() <= size_of::<u64>()) }
    let mut word = 0_u64;
    // SAFETY: as many bytes as the value has, which are no more than the word's.
    unsafe {
        std::ptr::from_ref(value)
            .cast::<u8>()
            .copy_to_nonoverlapping((&raw mut word).cast(), size_of::<T>());
    }
    word
}

/// Notes the launch, when this thread does so now.
pub(crate) fn note(name: &'static str, function: &CudaFunction, shape: Shape, words: &[u64]) -> bool {
    NOTED.with_borrow_mut(|noted| {
        let Some(notes) = noted else { return false };
        let from = notes.words.len();
        notes.words.extend_from_slice(words);
        notes.launches.push(Launch {
            name,
            function: function.cu_function(),
            shape,
            words: from..notes.words.len(),
        });
        true
    })
}

/// Refuses a call whose place among noted launches would be lost.
pub(crate) fn not_noted(call: &'static str) -> Result<(), CudaError> {
    if NOTED.with_borrow(Option::is_some) {
        return Err(CudaError::Noted { call });
    }
    Ok(())
}

/// Notes until it is dropped.
struct Noting;

impl Noting {
    fn begin() -> Result<Self, CudaError> {
        not_noted("a graph within a graph")?;
        NOTED.set(Some(Notes::default()));
        Ok(Self)
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        NOTED.set(None);
    }
}

/// Graphs by place: what is submitted at one place is nearly the same from call to call, weights above all.
#[derive(Debug, Default)]
pub struct Graphs(BTreeMap<usize, Vec<Graph>>);

impl Graphs {
    /// Graphs that may come to be kept for a place.
    pub const MOST: usize = MOST;

    /// Makes, changes and runs `count` graphs of `nodes` launches that do nothing, and drops them: how many bytes of the device they took.
    ///
    /// # Errors
    /// When the driver refuses what decoding by graphs needs.
    pub fn trial(device: &Device, count: usize, nodes: usize) -> Result<u64, CudaError> {
        let [from, to] = [0; 2].map(|_| device.upload("graphs", &[0_u64; 2]));
        let (from, to, bytes) = (from?, to?, device.upload("graphs", &[0_u32; 2])?);
        let launch = |blocks| {
            let shape = Shape::blocks(blocks, 32);
            device.copy_segments(shape, from.all().into(), to.all().into(), bytes.all().into())
        };
        // What the first launch of a kernel takes is not the graphs'.
        launch(1)?;
        device.wait()?;
        let mut graphs = Self::default();
        let (before, _) = device.memory()?;
        for place in 0..count {
            device.replay(&mut graphs, place, || (0..nodes).try_for_each(|_| launch(1)))?;
        }
        device.wait()?;
        let (after, _) = device.memory()?;
        for blocks in [0, 2] {
            device.replay(&mut graphs, 0, || (0..nodes).try_for_each(|_| launch(blocks)))?;
        }
        device.wait()?;
        Ok(before.saturating_sub(after))
    }
}

impl Device {
    /// Submits what `work` launches as one graph. It may launch kernels and take memory, nothing else.
    ///
    /// # Errors
    /// When `work` fails or does something else, and when the driver refuses the graph; nothing of it runs then.
    pub fn replay(
        &self,
        graphs: &mut Graphs,
        place: usize,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let noting = Noting::begin()?;
        work()?;
        let notes = NOTED.take().unwrap_or_default();
        drop(noting);
        if notes.launches.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let kept = graphs.0.entry(place).or_default();
        // Taken out: one whose change failed half-way is not kept.
        let graph = match kept.iter().position(|graph| graph.has_the_kernels_of(&notes)) {
            Some(found) => kept.remove(found).changed(notes)?,
            None => Graph::new(self, notes)?,
        };
        // SAFETY: both handles are alive; what the nodes touch was checked when they were noted.
        unsafe { sys::cuGraphLaunch(graph.exec, self.stream().cu_stream()) }
            .result()
            .map_err(CudaError::of_graph("cuGraphLaunch"))?;
        kept.push(graph);
        if kept.len() > MOST {
            kept.remove(0);
        }
        Ok(())
    }
}

/// A graph that is ready to run; each node follows the one before.
#[derive(Debug)]
struct Graph {
    context: Arc<CudaContext>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
    /// What the nodes are set to.
    now: Notes,
}

// SAFETY: the handles may be used by any thread that has the context, one at a time.
unsafe impl Send for Graph {}

impl Graph {
    fn new(device: &Device, notes: Notes) -> Result<Self, CudaError> {
        let mut made = Self {
            context: device.context().clone(),
            graph: std::ptr::null_mut(),
            exec: std::ptr::null_mut(),
            nodes: Vec::with_capacity(notes.launches.len()),
            now: notes,
        };
        // SAFETY: writes one handle, which is destroyed with `made`.
        unsafe { sys::cuGraphCreate(&raw mut made.graph, 0) }
            .result()
            .map_err(CudaError::of_graph("cuGraphCreate"))?;
        for launch in 0..made.now.launches.len() {
            made.add(launch)?;
        }
        // SAFETY: as above; the graph is complete.
        unsafe { sys::cuGraphInstantiateWithFlags(&raw mut made.exec, made.graph, 0) }
            .result()
            .map_err(CudaError::of_graph("cuGraphInstantiate"))?;
        for (launch, node) in made.now.launches.iter().zip(&made.nodes) {
            if launch.shape.is_empty() {
                made.enable(*node, false)?;
            }
        }
        Ok(made)
    }

    fn add(&mut self, launch: usize) -> Result<(), CudaError> {
        let before = self.nodes.last().copied();
        let mut node = std::ptr::null_mut();
        let (of, graph) = (&self.now.launches[launch], self.graph);
        self.now
            .with_parameters(of, |parameters| {
                // SAFETY: the driver copies the parameters; the node before is one of this graph.
                unsafe {
                    sys::cuGraphAddKernelNode_v2(
                        &raw mut node,
                        graph,
                        before.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
                        usize::from(before.is_some()),
                        parameters,
                    )
                }
            })
            .result()
            .map_err(CudaError::of_graph(of.name))?;
        self.nodes.push(node);
        Ok(())
    }

    fn has_the_kernels_of(&self, notes: &Notes) -> bool {
        let functions = |launch: &Launch| launch.function;
        let (now, then) = (self.now.launches.iter(), notes.launches.iter());
        now.map(functions).eq(then.map(functions))
    }

    /// Set to other parameters, where they are others. Launches that were submitted keep theirs.
    fn changed(mut self, notes: Notes) -> Result<Self, CudaError> {
        for ((node, now), then) in self.nodes.iter().zip(&self.now.launches).zip(&notes.launches) {
            let (was, is) = (!now.shape.is_empty(), !then.shape.is_empty());
            let same = now.shape == then.shape && self.now.words(now) == notes.words(then);
            if is && !same {
                let exec = self.exec;
                notes
                    .with_parameters(then, |parameters| {
                        // SAFETY: a node of the graph that this was made of; the driver copies the parameters.
                        unsafe { sys::cuGraphExecKernelNodeSetParams_v2(exec, *node, parameters) }
                    })
                    .result()
                    .map_err(CudaError::of_graph("cuGraphExecKernelNodeSetParams"))?;
            }
            if was != is {
                self.enable(*node, is)?;
            }
        }
        self.now = notes;
        Ok(self)
    }

    fn enable(&self, node: sys::CUgraphNode, on: bool) -> Result<(), CudaError> {
        // SAFETY: a node of the graph that this was made of.
        unsafe { sys::cuGraphNodeSetEnabled(self.exec, node, u32::from(on)) }
            .result()
            .map_err(CudaError::of_graph("cuGraphNodeSetEnabled"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: handles of this graph, used no more; the driver keeps what still runs. A failure leaks them.
        unsafe {
            if !self.exec.is_null() {
                let _ = sys::cuGraphExecDestroy(self.exec);
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph);
            }
        }
    }
}

impl Notes {
    fn words(&self, launch: &Launch) -> &[u64] {
        &self.words[launch.words.clone()]
    }

    /// The launch as the driver takes it, for one call. One of no blocks has one, and its node is disabled.
    fn with_parameters<T>(
        &self,
        launch: &Launch,
        call: impl FnOnce(*const sys::CUDA_KERNEL_NODE_PARAMS) -> T,
    ) -> T {
        let mut arguments: Vec<*mut std::ffi::c_void> = self
            .words(launch)
            .iter()
            .map(|word| std::ptr::from_ref(word).cast_mut().cast())
            .collect();
        let Shape { grid, block, shared } = launch.shape;
        let parameters = sys::CUDA_KERNEL_NODE_PARAMS {
            func: launch.function,
            gridDimX: grid.0.max(1),
            gridDimY: grid.1.max(1),
            gridDimZ: grid.2,
            blockDimX: block.0,
            blockDimY: block.1,
            blockDimZ: block.2,
            sharedMemBytes: shared,
            kernelParams: arguments.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        call(&raw const parameters)
    }
}
