//! What this machine can do at most: the lines that measured speeds are held against.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Far above any cache (the largest at hand has 32 MiB for two cores), so that memory is what is measured.
const BUFFER_BYTES: usize = 512 << 20;
/// The best of so many rounds: a peak is what is looked for, and other work on the machine only ever lowers it.
const ROUNDS: usize = 5;
/// Steps of the multiply loop in one round: about 50 ms at 2.6 GHz with AVX-512.
const STEPS: usize = 10_000_000;
/// Turns of the tiles' loop, for as long: a turn takes 64 cycles.
#[cfg(target_arch = "x86_64")]
const TURNS: usize = 2_000_000;

/// Measured peaks of some threads together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Roofline {
    /// Threads that worked at once.
    pub threads: usize,
    /// Bytes per second that they read from memory.
    pub read: f64,
    /// Bytes per second that they copied: each counts once, though it is read and written.
    pub copy: f64,
    /// 8-bit integer operations per second out of vector registers; a multiply and an add are two.
    pub int8: f64,
    /// The instruction of the 8-bit loop.
    pub int8_with: &'static str,
    /// The same out of tile registers, where there are any. Only formats whose blocks are long come near: integers must become floats too.
    pub tiles: Option<f64>,
}

impl Roofline {
    /// Measures with `threads` threads for about two seconds; takes 512 MiB meanwhile.
    #[must_use]
    pub fn measure(threads: usize) -> Self {
        let threads = threads.max(1);
        let (int8_with, operations, multiply) = int8();
        #[allow(clippy::cast_precision_loss)] // a few times 10^9
        let amount = (operations * STEPS * threads) as f64;
        let int8 = amount / best(threads, |_| multiply, |multiply| multiply(STEPS));
        let (read, copy) = memory(threads);
        let tiles = tiles(threads);
        Self {
            threads,
            read,
            copy,
            int8,
            int8_with,
            tiles,
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::cast_precision_loss)] // a few times 10^12
fn tiles(threads: usize) -> Option<f64> {
    use crate::amx::{OPERATIONS_PER_TURN, turns};
    let amount = (OPERATIONS_PER_TURN * TURNS * threads) as f64;
    let seconds = || best(threads, |_| (), |()| turns(TURNS));
    crate::Level::Amx.available().then(|| amount / seconds())
}

#[cfg(not(target_arch = "x86_64"))]
const fn tiles(_threads: usize) -> Option<f64> {
    None
}

#[allow(clippy::cast_precision_loss)] // bytes of a buffer
fn memory(threads: usize) -> (f64, f64) {
    let words = BUFFER_BYTES / size_of::<u64>() / threads;
    let bytes = (words * threads * size_of::<u64>()) as f64;
    let read = best(
        threads,
        |_| vec![1_u64; words],
        |part| {
            black_box(sum(part));
        },
    );
    let halves = |_| (vec![1_u64; words / 2], vec![2_u64; words / 2]);
    let copy = best(threads, halves, |(from, to)| {
        to.copy_from_slice(from);
        black_box(to);
    });
    (bytes / read, bytes / 2.0 / copy)
}

/// Seconds of the fastest round in which all threads did `work`, each on what `make` gave it.
fn best<T>(threads: usize, make: impl Fn(usize) -> T + Sync, work: impl Fn(&mut T) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let rounds = |thread| {
        let mut own = make(thread);
        let one = |_| {
            barrier.wait();
            let start = Instant::now();
            work(&mut own);
            // The slowest thread ends the round.
            barrier.wait();
            start.elapsed().as_secs_f64()
        };
        (0..ROUNDS).map(one).fold(f64::MAX, f64::min)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| scope.spawn(move || rounds(thread)))
            .collect();
        let own = rounds(0);
        drop(others);
        own
    })
}

/// Eight sums, so that no load waits for an addition.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 8];
    for eight in words.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// The best 8-bit multiply-and-add of this machine: its name, the operations of one step, and the loop over steps.
pub(crate) fn int8() -> (&'static str, usize, fn(usize)) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512vnni") {
            return ("vpdpbusd zmm", x86::CHAINS * 64 * 2, x86::run_vnni);
        }
        if std::is_x86_feature_detected!("avx2") {
            return ("vpmaddubsw, vpmaddwd ymm", x86::CHAINS * 32 * 2, x86::run_avx2);
        }
    }
    ("scalar", 64 * 2, scalar)
}

/// What the compiler makes of the plain loop.
fn scalar(steps: usize) {
    let (a, b) = (black_box([3_i8; 64]), black_box([5_i8; 64]));
    let mut sums = [0_i32; 64];
    for _ in 0..steps {
        for ((sum, a), b) in sums.iter_mut().zip(&a).zip(&b) {
            *sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
        black_box(&mut sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: latency (4 to 5 cycles) times throughput (2 a cycle) of the multiply, and some.
    pub(super) const CHAINS: usize = 12;

    pub(super) fn run_vnni(steps: usize) {
        // SAFETY: `int8` hands this out only where both features were found.
        unsafe { vnni(steps) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vnni(steps: usize) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) fn run_avx2(steps: usize) {
        // SAFETY: `int8` hands this out only where the feature was found.
        unsafe { avx2(steps) }
    }

    #[target_feature(enable = "avx2")]
    fn avx2(steps: usize) {
        let (a, b) = (_mm256_set1_epi8(3), black_box([_mm256_set1_epi8(5); CHAINS]));
        let ones = black_box(_mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..steps {
            // Opaque in each step, or the products would be taken out of the loop.
            let a = black_box(a);
            for (sum, b) in sums.iter_mut().zip(b) {
                let pairs = _mm256_maddubs_epi16(a, b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_reads_every_word() {
        let words: Vec<u64> = (0..64).collect();
        assert_eq!(sum(&words), 63 * 64 / 2);
    }

    #[test]
    fn every_thread_takes_part_in_every_round() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let done = AtomicUsize::new(0);
        let seconds = best(
            3,
            |thread| thread,
            |_| {
                done.fetch_add(1, Ordering::Relaxed);
            },
        );
        assert_eq!(done.load(Ordering::Relaxed), 3 * ROUNDS);
        assert!(seconds >= 0.0);
    }
}
