//! Whether a model fits the device, before any of it is there.

use ds4_kernels_cuda::{CudaError, Device, Graphs, Uploads};
use ds4_model::memory;

use crate::check::Need;
use crate::slice::Decode;

/// Launches of a layer at most: for a token of one session, and for that of each more. A test counts them.
const OF_ONE: usize = 59;
const OF_EACH_MORE: usize = 14;
/// What a graph has on average, when those that are kept are of passes of one session, of two, and so on.
const LAUNCHES: usize = OF_ONE + OF_EACH_MORE * (Graphs::MOST - 1) / 2;

/// Refuses a model of `weights` bytes in so many layers that does not fit, and graphs that the driver does not have.
pub(crate) fn check(device: &Device, weights: u64, layers: usize, decode: Decode) -> Result<(), CudaError> {
    let graphs = match decode {
        Decode::Graphs => most_of_graphs(device, layers)?,
        Decode::Launches => 0,
    };
    let need = Need {
        weights,
        loading: Uploads::room(weights),
        graphs,
    };
    need.check(free(device)?)
}

/// Free and total bytes. A device that shares the host's memory counts pages of files that are cached as taken, the model's own among them; the system gives
/// them up when memory is asked for. (GB10, measured: 2.9 GiB by the driver, 115.8 GiB available; ollama, pull request 12490.)
fn free(device: &Device) -> Result<(u64, u64), CudaError> {
    let (free, total) = device.memory()?;
    if !device.facts().unified {
        return Ok((free, total));
    }
    let available = memory::of_machine().unwrap_or(0);
    Ok((free.max(available).min(total), total))
}

/// What decode graphs of so many layers may come to take of the device, measured: a driver says for no graph what it takes.
fn most_of_graphs(device: &Device, layers: usize) -> Result<u64, CudaError> {
    let each = Graphs::trial(device, layers, LAUNCHES)?;
    Ok(each * Graphs::MOST as u64)
}
