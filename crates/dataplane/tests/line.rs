//! The waiting line under a clock that the test turns: order, knobs, shares, lateness; and what must always hold.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::time::{Duration, Instant};

use lrai_dataplane::knobs::Knobs;
use lrai_dataplane::line::{Admission, Arrival, LOWEST, Leaving, Line, Replicas};
use lrai_dataplane::stats::Closed;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const MAX_ROWS: u32 = 8;
const ONE_FREE: Replicas = Replicas { ready: 1, free: 1, rest: Duration::ZERO };
const ONE_BUSY: Replicas = Replicas { ready: 1, free: 0, rest: MS };

/// A line whose payload is the numbers of its requests, for requests of one kind per edge.
struct World {
    line: Line<Vec<usize>>,
    knobs: Knobs,
    start: Instant,
    arrived: usize,
}

impl World {
    fn new(knobs: &str) -> Self {
        let knobs = Knobs::parse(knobs).unwrap();
        Self { line: Line::default(), knobs, start: Instant::now(), arrived: 0 }
    }

    fn at(&self, ms: u32) -> Instant {
        self.start + ms * MS
    }

    fn request(&self, ms: u32, rows: u32) -> Arrival {
        let now = self.at(ms);
        let deadline = self.knobs.deadline(now, Duration::ZERO, None);
        Arrival { rows, edge: 0, rank: LOWEST, account: 0, now, deadline }
    }

    /// Admits a request as the queue does; returns its number, or by how much it is too late.
    fn admit(&mut self, arrival: Arrival, replicas: Replicas) -> Result<usize, Duration> {
        let Self { line, knobs, .. } = self;
        let index = match line.admit(&arrival, knobs, replicas, |_| true, |_| true) {
            Admission::Joins(index) => index,
            Admission::Opens => line.open(&arrival, MAX_ROWS.max(arrival.rows), Vec::new()),
            Admission::Late(late) => return Err(late),
        };
        line.add(index, &arrival, knobs).payload.push(self.arrived);
        self.arrived += 1;
        Ok(self.arrived - 1)
    }

    /// Admits a request and lets nothing join it.
    fn admit_alone(&mut self, arrival: Arrival) -> usize {
        let number = self.admit(arrival, ONE_FREE).unwrap();
        self.line.iter_mut().for_each(|batch| batch.sealed = true);
        number
    }

    fn leave(&mut self, ms: u32) -> Option<Leaving<Vec<usize>>> {
        self.line.choose(self.at(ms), &self.knobs)
    }

    /// The numbers of the requests in the order in which they leave.
    fn drain(&mut self, ms: u32) -> Vec<usize> {
        std::iter::from_fn(|| self.leave(ms)).flat_map(|leaving| leaving.batch.payload).collect()
    }
}

#[test]
fn a_batch_leaves_full_then_old_then_urgent_and_else_waits() {
    let knobs = r#"{"k":4,"tau_us":10000,"slack_us":1000,"work_conserving":false,"service":[[0,1,1000]]}"#;
    let mut world = World::new(knobs);
    let urgent = Arrival { deadline: Some(world.at(7)), ..world.request(0, 3) };
    world.admit(urgent, ONE_FREE).unwrap();
    assert_eq!(
        world.line.next_check(&world.knobs),
        Some(world.at(5)),
        "deadline less service time and slack"
    );
    assert!(world.leave(4).is_none());
    assert_eq!(world.leave(5).unwrap().closed, Closed::Deadline);

    world.admit(world.request(20, 3), ONE_FREE).unwrap();
    assert_eq!(world.line.next_check(&world.knobs), Some(world.at(30)));
    assert!(world.leave(29).is_none());
    assert_eq!(world.leave(30).unwrap().closed, Closed::Age);

    world.admit(world.request(40, 3), ONE_FREE).unwrap();
    world.admit(world.request(40, 1), ONE_FREE).unwrap();
    assert_eq!(world.leave(40).unwrap().closed, Closed::Full);
}

#[test]
fn by_default_a_batch_leaves_at_once_and_a_full_one_is_followed_by_another() {
    let mut world = World::new("{}");
    for _ in 0..3 {
        world.admit(world.request(0, 3), ONE_FREE).unwrap();
    }
    assert_eq!(world.line.next_check(&world.knobs), None);
    let first = world.leave(0).unwrap();
    assert_eq!((first.closed, first.batch.rows, first.batch.payload), (Closed::Full, 6, vec![0, 1]));
    let second = world.leave(0).unwrap();
    assert_eq!((second.closed, second.batch.payload), (Closed::Idle, vec![2]));
}

#[test]
fn the_cap_limits_batches_but_not_a_single_request() {
    let mut world = World::new(r#"{"cap":2}"#);
    for rows in [1, 1, 5, 1] {
        world.admit(world.request(0, rows), ONE_FREE).unwrap();
    }
    let sizes = std::iter::from_fn(|| world.leave(0)).map(|leaving| leaving.batch.rows);
    assert_eq!(sizes.collect::<Vec<_>>(), [2, 5, 1]);
}

#[test]
fn what_is_written_leaves_first_and_what_waits_for_a_writer_takes_no_more() {
    let mut world = World::new("{}");
    world.admit(world.request(0, 1), ONE_FREE).unwrap();
    world.admit(world.request(0, 1), ONE_FREE).unwrap();
    world.line.iter_mut().for_each(|batch| batch.writing = 1);
    assert!(world.leave(0).is_none());
    world.admit(world.request(0, 1), ONE_FREE).unwrap();
    assert_eq!(world.leave(0).unwrap().batch.payload, [2]);
    world.line.iter_mut().for_each(|batch| batch.writing = 0);
    assert_eq!(world.leave(0).unwrap().batch.payload, [0, 1]);
}

#[test]
fn priority_comes_before_deadline_and_deadline_before_age() {
    let mut world = World::new("{}");
    let old = world.admit_alone(world.request(0, 1));
    let soon = world.admit_alone(Arrival { deadline: Some(world.at(9)), ..world.request(2, 1) });
    let sooner = world.admit_alone(Arrival { deadline: Some(world.at(5)), ..world.request(3, 1) });
    let second = world.admit_alone(Arrival { rank: 2, ..world.request(4, 1) });
    let first = world.admit_alone(Arrival { rank: 1, ..world.request(5, 1) });
    let young = world.admit_alone(world.request(6, 1));
    assert_eq!(world.drain(6), [first, second, sooner, soon, old, young]);
}

#[test]
fn an_urgent_request_takes_the_batch_that_it_joins_with_it() {
    let mut world = World::new("{}");
    world.admit_alone(world.request(0, 1));
    world.admit(world.request(1, 1), ONE_FREE).unwrap();
    world.admit(Arrival { rank: 1, ..world.request(2, 1) }, ONE_FREE).unwrap();
    assert_eq!(world.drain(2), [1, 2, 0]);
}

#[test]
fn a_lost_batch_runs_again_before_everything_else() {
    let mut world = World::new(r#"{"k":8,"tau_us":9000,"work_conserving":false}"#);
    world.admit(world.request(0, 8), ONE_FREE).unwrap();
    let lost = world.leave(0).unwrap().batch;
    world.admit(Arrival { rank: 1, ..world.request(1, 8) }, ONE_FREE).unwrap();
    world.line.again(lost);
    let again = world.leave(1).unwrap();
    assert_eq!((again.closed, again.batch.payload), (Closed::Split, vec![0]));
    assert_eq!(world.drain(1), [1]);
}

#[test]
fn a_flood_of_one_tenant_leaves_another_its_share() {
    let mut world = World::new("{}");
    let [flood, other] = [1, 2].map(|tenant| world.line.tenants.account(tenant));
    for _ in 0..20 {
        world.admit_alone(Arrival { account: flood, ..world.request(0, 8) });
    }
    for _ in 0..3 {
        world.admit_alone(Arrival { account: other, ..world.request(1, 8) });
    }
    assert_eq!(world.drain(1)[..6], [0, 20, 1, 21, 2, 22], "by turns, although the flood came first");
}

#[test]
fn alone_a_tenant_is_served_by_deadline() {
    let mut world = World::new("{}");
    let account = world.line.tenants.account(1);
    world.admit_alone(Arrival { account, ..world.request(0, 1) });
    world.admit_alone(Arrival { account, deadline: Some(world.at(9)), ..world.request(1, 1) });
    assert_eq!(world.drain(1), [1, 0]);
}

#[test]
fn many_tenants_share_the_accounts_that_there_are() {
    let mut world = World::new("{}");
    for tenant in 1..3000 {
        let account = world.line.tenants.account(tenant);
        world.admit(Arrival { account, ..world.request(0, 1) }, ONE_FREE).unwrap();
        assert_eq!(account == tenant, tenant <= 1024, "{tenant}");
    }
    for tenant in 1..=1024 {
        world.line.tenants.leave(tenant);
    }
    world.drain(0);
    assert_eq!(world.line.tenants.account(5000), 5000, "who has nothing waiting is forgotten");
}

#[test]
fn a_request_that_would_be_late_is_told_by_how_much() {
    let knobs = r#"{"goal_us":10000,"slack_us":1000,"service":[[0,1,2000],[0,8,4000]]}"#;
    let mut world = World::new(knobs);
    // The running batch takes one millisecond more, every batch of eight rows four.
    assert_eq!(world.admit(world.request(0, 8), ONE_BUSY), Ok(0));
    assert_eq!(world.admit(world.request(0, 8), ONE_BUSY), Ok(1), "1 + 4 + 4 + slack is in time");
    assert_eq!(world.admit(world.request(0, 1), ONE_BUSY), Err(4 * MS), "1 + 4 + 4 + another 4 is not");
    let two = Replicas { ready: 2, ..ONE_BUSY };
    assert_eq!(world.admit(world.request(0, 1), two), Ok(2), "another replica helps");
    let urgent = Arrival { rank: 1, ..world.request(0, 8) };
    assert_eq!(world.admit(urgent, ONE_BUSY), Ok(3), "what comes first does not wait for the others");
}

#[test]
fn who_opens_a_batch_needs_room_for_as_many_rows_as_k_or_half_a_batch() {
    for (k, end) in [(0, 17), (1, 13), (7, 16), (8, 17)] {
        let mut world =
            World::new(&format!(r#"{{"k":{k},"work_conserving":false,"service":[[0,1,1000],[0,8,8000]]}}"#));
        let by = |world: &World, ms, rows| Arrival { deadline: Some(world.at(ms)), ..world.request(0, rows) };
        world.admit(by(&world, 9, 8), ONE_BUSY).unwrap();
        assert_eq!(world.admit(by(&world, end - 1, 1), ONE_BUSY), Err(MS), "1 + 8 + what fills, k = {k}");
        assert_eq!(world.admit(by(&world, end, 1), ONE_BUSY), Ok(1), "k = {k}");
    }
}

#[test]
fn who_waits_is_not_made_late_by_who_joins() {
    let mut world = World::new(r#"{"service":[[0,1,1000],[0,8,8000]]}"#);
    let by = |world: &World, ms, rows| Arrival { deadline: Some(world.at(ms)), ..world.request(0, rows) };
    world.admit(by(&world, 4, 2), ONE_BUSY).unwrap();
    assert_eq!(world.admit(by(&world, 4, 1), ONE_BUSY), Ok(1), "1 + 3 is in time for both");
    assert_eq!(
        world.admit(by(&world, 6, 1), ONE_BUSY),
        Err(MS),
        "four rows spoil it; another three take until 7"
    );
    assert_eq!(world.admit(by(&world, 7, 1), ONE_BUSY), Ok(2));
    assert_eq!(world.admit(world.request(0, 1), ONE_BUSY), Ok(3), "who has time joins those who have");
    let batches = std::iter::from_fn(|| world.leave(0)).map(|leaving| leaving.batch.payload);
    assert_eq!(batches.collect::<Vec<_>>(), [vec![0, 1], vec![2, 3]]);
}

#[test]
fn nobody_is_late_without_deadline_or_service_times_or_anyone_to_wait_for() {
    let slow = r#"{"goal_us":1000,"service":[[0,1,9000]]}"#;
    let mut world = World::new(slow);
    let patient = Arrival { deadline: None, ..world.request(0, 8) };
    assert!(world.admit(world.request(0, 8), ONE_FREE).is_ok(), "an idle replica finds out");
    assert!(world.admit(patient, ONE_BUSY).is_ok());
    assert!(world.admit(world.request(0, 8), ONE_BUSY).is_err());
    assert!(world.admit(world.request(0, 8), Replicas::default()).is_ok(), "no replica, no prediction");
    let mut world = World::new(r#"{"goal_us":1000}"#);
    world.admit(world.request(0, 8), ONE_BUSY).unwrap();
    assert!(world.admit(world.request(0, 8), ONE_BUSY).is_ok());
    assert!(world.leave(50).unwrap().hopeless.is_none());
}

#[test]
fn a_batch_says_who_in_it_is_hopeless_unless_nobody_waits_behind() {
    let mut world = World::new(r#"{"service":[[0,1,3000]]}"#);
    for _ in 0..2 {
        world.admit_alone(world.request(0, 1));
    }
    assert_eq!(world.leave(4).unwrap().hopeless, Some(world.at(7)));
    assert_eq!(world.leave(4).unwrap().hopeless, None);
}

#[derive(Clone, Debug)]
enum Step {
    Arrive { rows: u32, rank: u32, tenant: u64, allowed_ms: u32 },
    Leave,
    Lose,
    Turn { ms: u32 },
    Set { knobs: usize },
}

const KNOBS: [&str; 4] = [
    "{}",
    r#"{"k":3,"tau_us":5000,"work_conserving":false}"#,
    r#"{"cap":2,"service":[[0,1,500],[0,8,3000]]}"#,
    r#"{"k":6,"tau_us":9000,"slack_us":500,"goal_us":20000,"work_conserving":false,"service":[[0,1,900]]}"#,
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..12u32, prop_oneof![1..4u32, Just(LOWEST)], 0..4u64, 0..30u32).prop_map(
            |(rows, rank, tenant, allowed_ms)| Step::Arrive { rows, rank, tenant, allowed_ms }
        ),
        4 => Just(Step::Leave),
        1 => Just(Step::Lose),
        2 => (1..8u32).prop_map(|ms| Step::Turn { ms }),
        1 => (0..KNOBS.len()).prop_map(|knobs| Step::Set { knobs }),
    ]
}

proptest! {
    #[test]
    fn every_request_leaves_once_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let (mut world, mut now_ms, mut gone, mut lost) = (World::new(KNOBS[0]), 0, Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Turn { ms } => now_ms += ms,
                Step::Set { knobs } => {
                    world.knobs = Knobs::parse(KNOBS[knobs]).unwrap();
                    world.line.predict(&world.knobs);
                }
                Step::Arrive { rows, rank, tenant, allowed_ms } => {
                    let account = world.line.tenants.account(tenant);
                    let arrival = Arrival { rank, account, ..world.request(now_ms, rows) };
                    let deadline = world.knobs.deadline(arrival.now, allowed_ms * MS, None);
                    let admitted = world.admit(Arrival { deadline, ..arrival }, ONE_BUSY);
                    prop_assert!(admitted.is_ok() || deadline.is_some(), "refused without a deadline");
                }
                Step::Leave => {
                    let first = world.line.iter().map(|batch| batch.rank).min();
                    let Some(Leaving { batch, .. }) = world.leave(now_ms) else { continue };
                    let limit = batch.max_rows.min(MAX_ROWS);
                    prop_assert!(batch.rows <= limit || batch.requests == 1, "more rows than fit");
                    if world.knobs.work_conserving {
                        prop_assert_eq!(first, Some(batch.rank));
                    }
                    if lost.is_empty() && !batch.is_rerun() {
                        lost.push(batch);
                    } else {
                        gone.extend(batch.payload);
                    }
                }
                Step::Lose => lost.drain(..).for_each(|batch| world.line.again(batch)),
            }
        }
        gone.extend(lost.into_iter().flat_map(|batch| batch.payload));
        world.knobs = Knobs::default();
        gone.extend(world.drain(now_ms));
        gone.sort_unstable();
        prop_assert_eq!(gone, (0..world.arrived).collect::<Vec<_>>());
        prop_assert!(world.line.is_empty());
    }

    /// Start-time fair queueing: while both wait, no tenant gets more than two largest batches ahead of the other.
    #[test]
    fn shares_differ_by_at_most_two_batches(sizes in prop::collection::vec((1..=8u32, 1..=2u64), 10..80)) {
        let mut world = World::new("{}");
        for (rows, tenant) in &sizes {
            let account = world.line.tenants.account(*tenant);
            world.admit_alone(Arrival { account, ..world.request(0, *rows) });
        }
        let total = |tenant| sizes.iter().filter(|(_, of)| *of == tenant).map(|(rows, _)| *rows).sum::<u32>();
        let (mut served, totals) = ([0_u32; 2], [total(1), total(2)]);
        while let Some(Leaving { batch, .. }) = world.leave(0) {
            let tenant = sizes[batch.payload[0]].1 as usize - 1;
            served[tenant] += batch.rows;
            if served[0] < totals[0] && served[1] < totals[1] {
                prop_assert!(served[0].abs_diff(served[1]) <= 2 * MAX_ROWS, "{:?}", served);
            }
        }
        prop_assert_eq!(served, totals);
    }
}
