//! What is launched as a graph is what was noted, in that order, and nothing else.

use ds4_kernels_cuda::{CudaError, Graphs, Slice, norm};

use ds4_emu::{Turn, turn};

/// Three norms, each of what the one before wrote, of `rows` rows; one by one or as a graph.
fn chain(turn: &Turn, graphs: Option<&mut Graphs>, rows: usize) -> Vec<f32> {
    let device = &*turn.device;
    let x: Vec<f32> = (0..3 * 64).map(|i| i as f32 - 90.0).collect();
    let weight: Vec<f32> = (0..64).map(|i| 0.5 + i as f32).collect();
    let (x, weight) = (
        device.upload("test", &x).unwrap(),
        device.upload("test", &weight).unwrap(),
    );
    let [y, z] = [0; 2].map(|_| device.upload("test", &[9.0_f32; 3 * 64]).unwrap());
    let work = || {
        let rms = |from: Slice<'_, f32>, to: Slice<'_, f32>| {
            let range = 0..rows * 64;
            norm::rms(
                device,
                from.range(range.clone()),
                weight.all(),
                1e-6,
                to.range(range),
            )
        };
        rms(x.all(), y.all())?;
        rms(y.all(), z.all())?;
        rms(z.all(), y.all())
    };
    match graphs {
        Some(graphs) => device.replay(graphs, 0, work).unwrap(),
        None => work().unwrap(),
    }
    device.download(y.all()).unwrap()
}

#[test]
fn a_graph_of_other_rows_and_addresses_or_of_none_is_the_same_graph() {
    let turn = turn();
    let mut graphs = Graphs::default();
    let before = turn.emulator.graphs();
    for rows in [0, 3, 1, 0, 2] {
        let expected = chain(&turn, None, rows);
        assert_eq!(chain(&turn, Some(&mut graphs), rows), expected, "{rows} rows");
    }
    let after = turn.emulator.graphs();
    assert_eq!(after.instantiated - before.instantiated, 1);
    assert_eq!(after.launched - before.launched, 5);
    // Those of no rows stay as they were.
    assert_eq!(after.changed - before.changed, 3 * 3);
}

#[test]
fn a_launch_that_does_not_wait_for_the_one_before_is_seen() {
    let turn = turn();
    let expected = chain(&turn, None, 3);
    turn.emulator.deaf(true);
    assert_ne!(chain(&turn, Some(&mut Graphs::default()), 3), expected);
}

#[test]
fn work_done_late_is_that_of_the_graph_as_it_was_launched() {
    let turn = turn();
    let expected = [3, 1].map(|rows| chain(&turn, None, rows));
    let mut graphs = Graphs::default();
    turn.emulator.late(u64::MAX);
    assert_eq!([3, 1].map(|rows| chain(&turn, Some(&mut graphs), rows)), expected);
}

#[test]
fn what_is_no_launch_is_refused_by_name_and_nothing_runs() {
    let turn = turn();
    let device = &*turn.device;
    let (x, y) = (
        device.upload("test", &[1.0_f32; 64]).unwrap(),
        device.upload("test", &[0.0_f32; 64]).unwrap(),
    );
    type Call<'a> = &'a dyn Fn() -> Result<(), CudaError>;
    let calls: [(Call<'_>, &str); 4] = [
        (&|| device.write(&[2.0; 64], y.all()), "copy to the device"),
        (&|| device.download(y.all()).map(drop), "copy from the device"),
        (&|| device.copy(x.all(), y.all()), "copy within the device"),
        (&|| device.wait(), "wait for the device"),
    ];
    for (call, name) in calls {
        let work = || {
            norm::rms(device, x.all(), x.all(), 1e-6, y.all())?;
            call()
        };
        let refused = device.replay(&mut Graphs::default(), 0, work).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("{name}: expected launches only, of which a graph is made")
        );
    }
    assert_eq!(device.download(y.all()).unwrap(), [0.0; 64]);
}

#[test]
fn a_trial_says_what_graphs_take_and_gives_it_back() {
    let turn = turn();
    turn.emulator.bytes_of_node(1000);
    let (before, at) = (turn.emulator.graphs(), turn.device.memory().unwrap());
    assert_eq!(Graphs::trial(&turn.device, 3, 20).unwrap(), 3 * 20 * 1000);
    let after = turn.emulator.graphs();
    assert_eq!(after.instantiated - before.instantiated, 3);
    // One of them also without its launches, and with others.
    assert_eq!(after.launched - before.launched, 5);
    assert_eq!(after.changed - before.changed, 20);
    assert_eq!(turn.device.memory().unwrap(), at);
}

#[test]
fn a_trial_finds_every_call_that_a_driver_may_lack_and_says_how_to_do_without() {
    let turn = turn();
    for call in [
        "cuGraphCreate",
        "cuGraphInstantiate",
        "cuGraphLaunch",
        "cuGraphExecKernelNodeSetParams",
        "cuGraphNodeSetEnabled",
    ] {
        turn.emulator.lacks(Some(call));
        let refused = Graphs::trial(&turn.device, 1, 2).unwrap_err();
        let said = refused.to_string();
        assert!(!refused.is_sticky(), "{said}");
        assert!(said.starts_with(call) && said.contains("NOT_SUPPORTED"), "{said}");
        assert!(said.contains("--cuda-graph off"), "{said}");
    }
    turn.emulator.lacks(None);
    // The device is as it was.
    assert_eq!(Graphs::trial(&turn.device, 1, 2).unwrap(), 0);
}

#[test]
fn graphs_that_the_device_has_no_room_for_are_refused() {
    let turn = turn();
    turn.emulator.bytes_of_node(usize::MAX >> 20);
    let refused = Graphs::trial(&turn.device, 1, 2).unwrap_err();
    let said = refused.to_string();
    assert!(!refused.is_sticky() && said.contains("OUT_OF_MEMORY"), "{said}");
    assert!(said.contains("--cuda-graph off"), "{said}");
}
