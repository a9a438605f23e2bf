//! Requests that wait for a seat, and who gets the next one.

use super::{Clock, Flow};

/// One that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) id: u64,
    pub(crate) flow: Flow,
    /// Bytes of KV that it may come to hold.
    pub(crate) bytes: u64,
    /// Tokens of prompt and answer.
    pub(crate) tokens: usize,
    /// Others that went first because this one did not fit.
    passed: u32,
}

impl Waiter {
    pub(crate) const fn new(id: u64, flow: Flow, bytes: u64, tokens: usize) -> Self {
        Self {
            id,
            flow,
            bytes,
            tokens,
            passed: 0,
        }
    }
}

/// So many may go past a request that does not fit; then the room waits until it does.
const PASSED: u32 = 8;

/// Seats and bytes that are free, and those who wait for them, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Room {
    seats: usize,
    bytes: u64,
    most: usize,
    waiting: Vec<Waiter>,
    clock: Clock,
}

impl Room {
    /// So many seats and bytes, and at most `most` that wait.
    pub(crate) fn new(seats: usize, bytes: u64, most: usize) -> Self {
        Self {
            seats,
            bytes,
            most,
            waiting: Vec::new(),
            clock: Clock::default(),
        }
    }

    /// Waits from now on; `Err` with how many wait when that is as many as may, unless there is a seat at once.
    pub(crate) fn enter(&mut self, waiter: Waiter) -> Result<(), usize> {
        let full = self.waiting.len() >= self.most;
        if full && !(self.waiting.is_empty() && self.fits(&waiter)) {
            return Err(self.waiting.len());
        }
        self.waiting.push(waiter);
        Ok(())
    }

    /// Waits no more; whether it did.
    pub(crate) fn leave(&mut self, id: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiter| waiter.id != id);
        self.waiting.len() < before
    }

    /// Who begins now, with a seat and its bytes taken; none when nobody can.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by_key(|i| (self.clock.time(self.waiting[*i].flow), *i));
        for (rank, at) in order.iter().copied().enumerate() {
            if self.fits(&self.waiting[at]) {
                order[..rank].iter().for_each(|i| self.waiting[*i].passed += 1);
                let waiter = self.waiting.remove(at);
                self.clock.charge(waiter.flow, waiter.tokens);
                self.seats -= 1;
                self.bytes -= waiter.bytes;
                return Some(waiter.id);
            }
            if self.seats == 0 || self.waiting[at].passed >= PASSED {
                return None;
            }
        }
        None
    }

    /// A seat and `bytes` are free again.
    pub(crate) fn free(&mut self, bytes: u64) {
        self.seats += 1;
        self.bytes += bytes;
    }

    /// Bytes that nobody has set aside.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn fits(&self, waiter: &Waiter) -> bool {
        self.seats > 0 && waiter.bytes <= self.bytes
    }
}
