//! How soon nothing of a session is left: on the simulation's clock, where a job takes up to four milliseconds and a byte up to five.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::random::Random;
use super::script::{Change, SILENCE, Script, Talk, Turn};
use super::world::World;
use crate::stage::Totals;
use crate::{OnFailure, Policy};

/// A session must be gone from every stage within this time.
const GONE: Duration = Duration::from_millis(200);

/// Three stages, one long prompt, nothing kept by the output pod.
fn script(leaves: Option<Duration>) -> Script {
    let mut script = Script::quiet(&mut Random::new(1));
    script.places = vec![(0, 0, false), (1, 1, false), (2, 2, false)];
    script.options.prefill_chunk = 4;
    script.options.policy = Policy::Always;
    script.options.on_failure = OnFailure::Fail;
    script.options.kept_budget = 0;
    script.talks = vec![Talk {
        opening: 1,
        length: 2000,
        turns: vec![Turn {
            change: Change::Continue,
            more: 0,
            pause: Duration::ZERO,
            leaves,
        }],
    }];
    script
}

/// From now until no stage but those in `without` holds anything.
async fn gone(world: &World, without: &[usize]) -> Duration {
    let started = Instant::now();
    let held = || {
        let stages = world.stages.borrow();
        let others = stages.iter().enumerate().filter(|(i, _)| !without.contains(i));
        others
            .map(|(_, stage)| stage.sessions.totals())
            .any(|totals| totals != Totals::default())
    };
    while held() {
        sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(work)
}

fn working(world: &World) -> usize {
    let stages = world.stages.borrow();
    stages.iter().map(|stage| stage.sessions.totals().working).sum()
}

#[test]
fn a_client_that_leaves_ends_the_work_on_every_stage_within_200_ms() {
    for at in [20, 60, 150, 400] {
        let took = run(async {
            let world = World::new(script(Some(Duration::from_millis(at))), Random::new(at));
            world.talk_all().await.expect("it left");
            gone(&world, &[]).await
        });
        assert!(took <= GONE, "left after {at} ms: {took:?}");
    }
}

#[test]
fn a_deadline_that_passes_ends_the_work_on_every_stage_within_200_ms() {
    let took = run(async {
        let world = World::new(script(None), Random::new(7));
        let silent = async {
            sleep(Duration::from_millis(300)).await;
            assert_eq!(working(&world), 3);
            world.freeze(1, true);
        };
        let (failed, ()) = tokio::join!(world.talk_first(), silent);
        let error = failed.expect_err("the policy is to fail").to_string();
        assert!(error.contains("stage"), "{error}");
        gone(&world, &[1]).await
    });
    // The deadline has just passed on one of them; on its neighbours it passes with the same silence.
    assert!(took <= GONE, "{took:?} after a silence of {SILENCE:?}");
}

#[test]
fn a_stage_that_ends_lets_go_within_200_ms_and_so_do_its_neighbours() {
    let took = run(async {
        let world = World::new(script(None), Random::new(8));
        let ends = async {
            sleep(Duration::from_millis(300)).await;
            assert_eq!(working(&world), 3);
            world.stages.borrow()[1].sessions.stop();
            gone(&world, &[]).await
        };
        let (failed, took) = tokio::join!(world.talk_first(), ends);
        failed.expect_err("the policy is to fail");
        took
    });
    assert!(took <= GONE, "{took:?}");
}
