//! Whatever waits and whatever was measured: bounds, shares, and nobody is forgotten.

use proptest::prelude::*;

use super::*;

fn flow(client: u64) -> Flow {
    Flow {
        client,
        ..Flow::default()
    }
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)]
}

fn waiting() -> impl Strategy<Value = Waiting> {
    (0..4_u64, priority(), any::<bool>(), 0..200_usize, 0..5000_usize).prop_map(
        |(client, priority, own, ready, more)| Waiting {
            flow: Flow { client, priority },
            kind: if own { Kind::Own } else { Kind::Whole },
            ready,
            position: more,
            left: ready + more,
            passed: 0,
        },
    )
}

/// A prompt of the first client with `left` tokens to its end, all of them ready.
fn prompt(position: usize, left: usize) -> Waiting {
    Waiting {
        flow: flow(0),
        kind: Kind::Whole,
        ready: left,
        position,
        left,
        passed: 0,
    }
}

fn piece(kind: Kind, position: usize, tokens: usize) -> Piece {
    Piece {
        kind,
        position,
        tokens,
    }
}

/// A pace whose costs are known: an answer takes a second, a prompt token `cost`.
fn known(stretch: f64, cost: f64) -> Pace {
    let mut pace = Pace::new(stretch);
    for answers in 1..=64 {
        pace.passed(answers, &[], 1.0);
    }
    for kind in [Kind::Whole, Kind::Own] {
        pace.measured(0, piece(kind, 0, 1), cost);
        pace.measured(1, piece(kind, 0, 1), cost);
    }
    pace
}

proptest! {
    #[test]
    fn pieces_are_of_what_is_ready_and_keep_to_both_bounds(
        mut prompts in prop::collection::vec(waiting(), 0..12), answers in 0..64_usize, cost in 0.001..3.0_f64, stretch in 1.0..4.0_f64,
    ) {
        let before = prompts.clone();
        let pieces = known(stretch, cost).choose(answers, &mut prompts);
        let tokens: usize = pieces.iter().map(|piece| piece.tokens).sum();
        prop_assert!(tokens <= PIECE);
        for piece in &pieces {
            prop_assert!((1..=before[piece.prompt].ready).contains(&piece.tokens));
            prop_assert_eq!(pieces.iter().filter(|other| other.prompt == piece.prompt).count(), 1);
        }
        prop_assert_eq!(pieces.is_empty(), before.iter().all(|prompt| prompt.ready == 0), "something goes on whenever something can");
        if answers > 0 && tokens > 1 {
            prop_assert!(tokens as f64 * cost <= stretch - 1.0 + 1e-9, "{} tokens", tokens);
        }
    }

    #[test]
    fn every_prompt_of_a_flow_goes_on_however_many_shorter_ones_come(shorter in 1..64_usize) {
        let mut pace = Pace::new(2.0);
        let mut prompts = vec![prompt(0, 30_000)];
        let mut since = 0;
        for _ in 0..200 {
            // There is always another one that ends sooner.
            prompts.truncate(1);
            prompts.push(Waiting { ready: shorter, left: shorter, passed: 0, ..prompts[0].clone() });
            let pieces = pace.choose(0, &mut prompts);
            since = if pieces.iter().any(|piece| piece.prompt == 0) { 0 } else { since + 1 };
            prop_assert!(since <= 5);
        }
    }

    #[test]
    fn clients_that_always_have_work_get_their_weighted_share(priorities in prop::collection::vec(priority(), 2..6), rounds in 50..300_usize) {
        let weight = |priority| match priority { Priority::Low => 1.0, Priority::Normal => 8.0, Priority::High => 64.0 };
        let mut pace = Pace::new(2.0);
        let of_client = |(client, priority): (usize, &Priority)| Waiting {
            flow: Flow { client: client as u64, priority: *priority }, ..prompt(0, usize::MAX >> 1)
        };
        let mut prompts: Vec<Waiting> = priorities.iter().enumerate().map(of_client).collect();
        let mut served = vec![0.0; prompts.len()];
        for _ in 0..rounds {
            for piece in pace.choose(0, &mut prompts) {
                served[piece.prompt] += piece.tokens as f64;
            }
        }
        let most = PIECE as f64;
        for (a, of_a) in served.iter().zip(&priorities) {
            for (b, of_b) in served.iter().zip(&priorities) {
                // The bound of start-time fair queueing: one piece of each.
                let apart = (a / weight(*of_a) - b / weight(*of_b)).abs();
                prop_assert!(apart <= most / weight(*of_a) + most / weight(*of_b) + 1e-9, "{:?}", served);
            }
        }
    }

    #[test]
    fn the_room_never_gives_more_than_it_has_and_everyone_gets_in(
        requests in prop::collection::vec((0..4_u64, priority(), 1..100_u64, 1..500_usize), 1..60), seats in 1..6_usize,
    ) {
        let (bytes, mut sitting) = (100, Vec::new());
        let mut room = Room::new(seats, bytes, requests.len());
        for (id, (client, priority, need, tokens)) in requests.iter().enumerate() {
            let flow = Flow { client: *client, priority: *priority };
            prop_assert!(room.enter(Waiter::new(id as u64, flow, *need, *tokens)).is_ok());
        }
        let mut seen = 0;
        while seen < requests.len() {
            while let Some(id) = room.next() {
                sitting.push(requests[id as usize].2);
                seen += 1;
            }
            let held: u64 = sitting.iter().sum();
            prop_assert!(sitting.len() <= seats && held <= bytes);
            prop_assert_eq!(room.bytes(), bytes - held);
            prop_assert!(!sitting.is_empty(), "an empty room lets somebody in");
            room.free(sitting.remove(0));
        }
        prop_assert_eq!(room.waiting(), 0);
    }

    #[test]
    fn one_that_does_not_fit_is_passed_by_few(small in 1..20_u64) {
        let mut room = Room::new(4, 100, 1000);
        prop_assert!(room.enter(Waiter::new(0, flow(0), 10, 1)).is_ok());
        prop_assert_eq!(room.next(), Some(0));
        prop_assert!(room.enter(Waiter::new(1, flow(1), 100, 1)).is_ok());
        for i in 0..50 {
            prop_assert!(room.enter(Waiter::new(100 + i, flow(2), small, 1)).is_ok());
        }
        let mut sitting = std::collections::VecDeque::from([10]);
        let mut passed = 0;
        loop {
            match room.next() {
                Some(1) => break,
                Some(_) => { passed += 1; sitting.push_back(small); }
                None => room.free(sitting.pop_front().expect("somebody sits")),
            }
        }
        prop_assert!(passed <= 9, "{} went first", passed);
    }
}

#[test]
fn a_client_with_one_request_does_not_wait_behind_all_of_another() {
    let mut room = Room::new(1, 100, 100);
    for id in 0..20 {
        room.enter(Waiter::new(id, flow(1), 1, 10)).expect("room");
    }
    assert_eq!(room.next(), Some(0));
    room.enter(Waiter::new(99, flow(2), 1, 10)).expect("room");
    room.free(1);
    assert_eq!(room.next(), Some(99));
}

#[test]
fn a_full_room_refuses_and_says_how_many_wait() {
    let mut room = Room::new(1, 100, 0);
    assert!(
        room.enter(Waiter::new(0, flow(0), 1, 1)).is_ok(),
        "a seat is free"
    );
    assert_eq!(room.next(), Some(0));
    assert_eq!(room.enter(Waiter::new(1, flow(0), 1, 1)), Err(0));
    assert!(!room.leave(1));
}

#[test]
fn answers_are_measured_alone_before_prompts_join_them_and_again_later() {
    let mut pace = Pace::new(2.0);
    let mut prompts = [prompt(0, 1000)];
    assert!(pace.choose(3, &mut prompts).is_empty());
    pace.passed(3, &[], 1.0);
    assert_eq!(pace.choose(3, &mut prompts)[0].tokens, 4, "a first, small piece");
    pace.passed(3, &[piece(Kind::Whole, 0, 4)], 1.5);
    assert_eq!(
        pace.choose(3, &mut prompts)[0].tokens,
        8,
        "a second at an eighth a token"
    );
    let joined = (0..64)
        .filter(|_| !pace.choose(3, &mut prompts).is_empty())
        .count();
    assert!((50..64).contains(&joined), "{joined}");
}

#[test]
fn a_piece_deep_in_a_prompt_takes_no_longer_than_one_at_its_beginning() {
    let mut pace = Pace::new(2.0);
    let tokens = |pace: &mut Pace, position| pace.choose(0, &mut [prompt(position, 1000)])[0].tokens;
    assert_eq!(tokens(&mut pace, 0), PIECE);
    pace.passed(0, &[piece(Kind::Whole, 0, PIECE)], 1.28);
    assert_eq!(tokens(&mut pace, 20_000), PIECE, "not known yet");
    pace.passed(0, &[piece(Kind::Whole, 20_000, PIECE)], 5.12);
    assert_eq!(tokens(&mut pace, 20_000), PIECE / 4);
    assert_eq!(tokens(&mut pace, 0), PIECE);
    pace.passed(0, &[piece(Kind::Whole, 60_000, 8)], 80.0);
    assert_eq!(tokens(&mut pace, 60_000), 8, "never less");
}

/// Found by a model that costs nothing: its pieces came to be of 8 tokens and stayed so, since 8 tokens for the time of a whole pass are dear.
#[test]
fn pieces_do_not_become_shorter_because_they_are_short() {
    let mut pace = Pace::new(2.0);
    let takes = |tokens: usize| 1.0 + 0.001 * tokens as f64;
    pace.passed(0, &[piece(Kind::Whole, 0, PIECE)], takes(PIECE));
    let mut tokens = 8;
    for _ in 0..40 {
        pace.passed(0, &[piece(Kind::Whole, 20_000, tokens)], takes(tokens));
        tokens = pace.choose(0, &mut [prompt(20_000, 1000)])[0].tokens;
    }
    assert!(tokens > PIECE * 3 / 4, "{tokens}");
}

#[test]
fn pieces_of_different_cost_in_one_pass_tell_nothing() {
    let mut costs = Costs::default();
    costs.learn(&[piece(Kind::Own, 0, 10)], 1.0);
    costs.learn(&[piece(Kind::Own, 30_000, 10)], 4.0);
    costs.learn(&[piece(Kind::Own, 0, 10), piece(Kind::Own, 30_000, 10)], 100.0);
    assert_eq!(costs.at(Kind::Own, 0), Some(0.1));
    assert_eq!(costs.at(Kind::Own, 30_000), Some(0.4));
    assert_eq!(costs.at(Kind::Whole, 0), None);
    assert_eq!(costs.like(512, Kind::Own, 30_000), 128);
    assert_eq!(costs.like(512, Kind::Whole, 30_000), 512, "not known");
}

#[test]
fn a_short_prompt_goes_before_the_rest_of_a_long_one_and_alone() {
    let shares = |prompts: &mut [Waiting]| {
        let shares = Pace::new(2.0).choose(0, prompts);
        let pair = |share: &Share| (share.prompt, share.tokens);
        shares.iter().map(pair).collect::<Vec<_>>()
    };
    let (long, short) = (prompt(20_000, 10_000), prompt(0, 40));
    assert_eq!(shares(&mut [long.clone(), short.clone()]), [(1, 40)]);
    assert_eq!(
        shares(&mut [long.clone(), short.clone(), short]),
        [(1, 40), (2, 40)],
        "what ends too may go along"
    );
    assert_eq!(shares(&mut [long, prompt(0, 400)]), [(1, PIECE)]);
}

#[test]
fn one_disturbed_pass_of_answers_does_not_let_prompts_take_longer() {
    let mut pace = known(2.0, 0.1);
    let tokens = |pace: &mut Pace| pace.choose(4, &mut [prompt(0, 1000)])[0].tokens;
    assert_eq!(tokens(&mut pace), 10);
    pace.passed(4, &[], 5.0);
    assert_eq!(tokens(&mut pace), 15, "an eighth of the rise");
    pace.passed(4, &[], 1.0);
    assert_eq!(tokens(&mut pace), 10, "all of the fall");
}
