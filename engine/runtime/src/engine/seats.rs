//! Seats: who may be computed now. A seat comes with the bytes of KV that the request may come to hold.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::schedule::{Flow, Room, Waiter};

/// What a new measurement counts.
const FRESH: f64 = 0.2;
/// Nobody is told to come back later than this.
const LONGEST: Duration = Duration::from_secs(60);

/// The room and who is called from it.
#[derive(Debug)]
pub(super) struct Seats {
    state: Mutex<State>,
    seats: usize,
}

#[derive(Debug)]
struct State {
    room: Room,
    called: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
    /// Seconds that a seat is taken for.
    mean: f64,
}

/// Why there is no seat: how many wait, and when there may be one.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoSeat {
    pub(super) waiting: usize,
    pub(super) retry_after: Duration,
}

impl Seats {
    /// So many requests at once, with so many bytes together; at most `queue` wait.
    pub(super) fn new(seats: usize, bytes: u64, queue: usize) -> Self {
        let seats = seats.max(1);
        let state = State {
            room: Room::new(seats, bytes, queue),
            called: HashMap::new(),
            next: 0,
            mean: 0.0,
        };
        Self {
            state: Mutex::new(state),
            seats,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that no seat has set aside.
    pub(super) fn free_bytes(&self) -> u64 {
        self.state().room.bytes()
    }

    /// A place in the queue; [`Place::seat`] waits for its turn.
    pub(super) fn enter(&self, flow: Flow, bytes: u64, tokens: usize) -> Result<Place<'_>, NoSeat> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        if let Err(waiting) = state.room.enter(Waiter::new(id, flow, bytes, tokens)) {
            let retry_after = self.retry_after(&state);
            return Err(NoSeat { waiting, retry_after });
        }
        let (call, called) = oneshot::channel();
        state.called.insert(id, call);
        state.call();
        drop(state);
        Ok(Place {
            seats: self,
            id,
            bytes,
            called,
            seated: None,
        })
    }

    /// How long as many requests as wait now take, by what requests have taken lately.
    pub(super) fn no_seat(&self) -> NoSeat {
        let state = self.state();
        NoSeat {
            waiting: state.room.waiting(),
            retry_after: self.retry_after(&state),
        }
    }

    fn retry_after(&self, state: &State) -> Duration {
        let turns = (state.room.waiting() + 1) as f64 / self.seats as f64;
        Duration::from_secs_f64((turns * state.mean).clamp(1.0, LONGEST.as_secs_f64()))
    }
}

impl State {
    /// Calls everyone who may begin.
    fn call(&mut self) {
        while let Some(id) = self.room.next() {
            if let Some(call) = self.called.remove(&id) {
                // Whoever left meanwhile gives the seat back when the place is dropped.
                let _ = call.send(());
            }
        }
    }
}

/// A place in the queue, then a seat; dropped, it goes to the next one.
#[derive(Debug)]
pub(super) struct Place<'a> {
    seats: &'a Seats,
    id: u64,
    bytes: u64,
    called: oneshot::Receiver<()>,
    seated: Option<Instant>,
}

impl Place<'_> {
    /// Waits for the seat.
    pub(super) async fn seat(&mut self) {
        if self.seated.is_none() {
            // The sender is there until it has called.
            let _ = (&mut self.called).await;
            self.seated = Some(Instant::now());
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.seats.state();
        if !state.room.leave(self.id) {
            state.room.free(self.bytes);
        }
        state.called.remove(&self.id);
        if let Some(seated) = self.seated {
            let new = seated.elapsed().as_secs_f64();
            state.mean += FRESH * (new - state.mean);
        }
        state.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_seat_goes_to_the_next_one_also_when_who_was_called_has_left() {
        let seats = Seats::new(1, 100, 2);
        let flow = Flow::default();
        let mut first = seats.enter(flow, 60, 1).expect("room");
        first.seat().await;
        let called = seats.enter(flow, 50, 1).expect("room");
        let mut last = seats.enter(flow, 70, 1).expect("room");
        let refused = seats.enter(flow, 1, 1).expect_err("full");
        assert_eq!(
            (refused.waiting, refused.retry_after),
            (2, Duration::from_secs(1))
        );
        assert_eq!(seats.free_bytes(), 40);
        drop(first);
        assert_eq!(seats.free_bytes(), 50, "the second one is called");
        drop(called);
        last.seat().await;
        assert_eq!(seats.free_bytes(), 30);
        drop(last);
        assert_eq!((seats.free_bytes(), seats.no_seat().waiting), (100, 0));
    }
}
