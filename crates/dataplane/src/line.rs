//! The waiting line of one model as a pure data structure: who waits, which batch leaves next and why, when an answer
//! would come. It does no I/O, takes no lock, reads no clock and decides without an allocation, so that the queue of the
//! server and the simulator run the same code.
//!
//! A caller admits a request in three steps: [`Line::admit`], [`Line::open`] if it opens a batch, [`Line::add`].

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::knobs::Knobs;
use crate::stats::Closed;
use crate::tenants::Tenants;

/// The rank of batches that run again: before everything else.
const RERUN: u32 = 0;
/// The rank of requests that ask for none.
pub const LOWEST: u32 = u32::MAX;

/// A request as the line sees it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its rows.
    pub rows: u32,
    /// Upper edge of its length bucket; 0 = no buckets.
    pub edge: u32,
    /// Priority class, 1 = first.
    pub rank: u32,
    /// From [`Tenants::account`]; 0 = there are no tenants.
    pub account: u64,
    /// When it came.
    pub now: Instant,
    /// When its answer must be there.
    pub deadline: Option<Instant>,
}

/// A batch that waits, and what the line knows of it.
#[derive(Clone, Debug)]
pub struct Waiting<P> {
    /// The caller's part of the batch.
    pub payload: P,
    /// Rows of all requests.
    pub rows: u32,
    /// Most rows that it can hold.
    pub max_rows: u32,
    /// Upper edge of its length bucket; 0 = no buckets.
    pub edge: u32,
    /// Requests in it.
    pub requests: u32,
    /// Requests whose rows are being written: it cannot leave before they are.
    pub writing: u32,
    /// Nothing more may join.
    pub sealed: bool,
    /// When its first request came.
    pub born: Instant,
    /// The nearest deadline in it.
    pub deadline: Option<Instant>,
    /// Its predicted service time; zero = unknown.
    pub service: Duration,
    /// The highest priority class in it.
    pub rank: u32,
    /// The least start tag in it.
    pub share: u64,
}

/// What decides who is first: the smaller one.
type Order = (u32, u64, Reverse<bool>, Option<Instant>, Instant);

/// Rank, then share, then deadline (none comes last), then age.
fn order(rank: u32, share: u64, deadline: Option<Instant>, born: Instant) -> Order {
    (rank, share, Reverse(deadline.is_some()), deadline, born)
}

impl<P> Waiting<P> {
    fn order(&self, is_contended: bool) -> Order {
        order(self.rank, if is_contended { self.share } else { 0 }, self.deadline, self.born)
    }

    /// Whether it has run before: its rows stay where they are.
    pub fn is_rerun(&self) -> bool {
        self.rank == RERUN
    }

    /// Whether it leaves now that a replica is free, and why.
    fn closes(&self, knobs: &Knobs, now: Instant) -> Option<Closed> {
        if self.is_rerun() {
            return Some(Closed::Split);
        }
        if self.sealed || self.rows >= self.most_rows(knobs) || (knobs.k > 0 && self.rows >= knobs.k) {
            return Some(Closed::Full);
        }
        if knobs.work_conserving {
            return Some(Closed::Idle);
        }
        if now >= self.born + knobs.tau {
            return Some(Closed::Age);
        }
        self.latest(knobs).is_some_and(|latest| now >= latest).then_some(Closed::Deadline)
    }

    fn most_rows(&self, knobs: &Knobs) -> u32 {
        self.max_rows.min(knobs.most_rows(self.edge))
    }

    /// When it must leave for its nearest deadline.
    fn latest(&self, knobs: &Knobs) -> Option<Instant> {
        self.deadline.map(|deadline| deadline.checked_sub(self.service + knobs.slack).unwrap_or(self.born))
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It joins the batch at this index.
    Joins(usize),
    /// It opens a batch.
    Opens,
    /// It is refused, because its answer would come so long after its deadline.
    Late(Duration),
}

/// A batch that leaves.
#[derive(Debug)]
pub struct Leaving<P> {
    /// The batch.
    pub batch: Waiting<P>,
    /// Why.
    pub closed: Closed,
    /// Requests with an earlier deadline can no longer be answered in time and are to be refused; `None` = there is no
    /// reason to, because the service time is unknown or nobody waits behind.
    pub hopeless: Option<Instant>,
}

/// What the replicas do while the line waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replicas {
    /// How many take batches.
    pub ready: u32,
    /// How many of them run none.
    pub free: u32,
    /// Predicted time until each of the others is free, added up.
    pub rest: Duration,
}

/// The line of one model: batches in the order in which they leave.
pub struct Line<P> {
    batches: VecDeque<Waiting<P>>,
    /// Who has had how much.
    pub tenants: Tenants,
}

impl<P> Default for Line<P> {
    fn default() -> Self {
        Self { batches: VecDeque::new(), tenants: Tenants::default() }
    }
}

impl<P> Line<P> {
    /// Where a request goes. `is_alike` says whether a batch is of its kind, of which at most one is open; `fits`, whether
    /// there is room for it beside that for rows.
    ///
    /// A request joins the open batch unless that would make those late who are in it. It opens another one if even a
    /// batch as large as the largest that waits would be in time: an overload must not fall apart into small batches. Where
    /// k says that smaller ones will do, half of the most rows, or k if that is more, are enough: a crowd may be short.
    pub fn admit(
        &mut self,
        arrival: &Arrival,
        knobs: &Knobs,
        replicas: Replicas,
        is_alike: impl Fn(&P) -> bool,
        fits: impl FnOnce(&P) -> bool,
    ) -> Admission {
        let is_open = |batch: &Waiting<P>| !batch.sealed && is_alike(&batch.payload);
        let open = self.batches.iter().rposition(is_open);
        if let Some(index) = open {
            let batch = &self.batches[index];
            let rows = batch.rows + arrival.rows;
            if rows <= batch.most_rows(knobs) && fits(&batch.payload) {
                let end = self.end(arrival, open, rows, knobs, replicas);
                let spoils = end.zip(batch.deadline).is_some_and(|(end, deadline)| end > deadline);
                if !spoils {
                    let late = self.late(arrival, end, replicas);
                    return late.map_or(Admission::Joins(index), Admission::Late);
                }
            }
        }
        if let Some(late) = self.late_alone(arrival, knobs, replicas) {
            return Admission::Late(late);
        }
        if let Some(index) = open {
            // What comes later must not overtake.
            self.batches[index].sealed = true;
        }
        Admission::Opens
    }

    /// By how much the answer to a request misses its deadline if it opens a batch.
    fn late_alone(&self, arrival: &Arrival, knobs: &Knobs, replicas: Replicas) -> Option<Duration> {
        // Without a deadline a long line is not looked through.
        arrival.deadline?;
        let likely = |batch: &Waiting<P>| {
            let enough =
                if knobs.k == 0 { u32::MAX } else { knobs.k.max(batch.most_rows(knobs).div_ceil(2)) };
            batch.rows.min(enough)
        };
        let rows = self.batches.iter().map(likely).fold(arrival.rows, u32::max);
        self.late(arrival, self.end(arrival, None, rows, knobs, replicas), replicas)
    }

    /// By how much an answer misses its request's deadline, if it does. A request that nobody competes with is never late:
    /// how long it takes is news.
    fn late(&self, arrival: &Arrival, end: Option<Instant>, replicas: Replicas) -> Option<Duration> {
        let is_alone = replicas.free > 0 && self.batches.is_empty();
        let late = end?.checked_duration_since(arrival.deadline?)?;
        (!is_alone && !late.is_zero()).then_some(late)
    }

    /// When the answer to a request would be there, slack included, if its batch had so many rows; `None` where that cannot
    /// be predicted. `joins` is its batch, if that is in the line.
    pub fn end(
        &self,
        arrival: &Arrival,
        joins: Option<usize>,
        rows: u32,
        knobs: &Knobs,
        replicas: Replicas,
    ) -> Option<Instant> {
        let service = knobs.service.predict(arrival.edge, rows).filter(|_| replicas.ready > 0)?;
        let is_contended = self.tenants.is_contended();
        let share = if is_contended { self.tenants.start(arrival.account) } else { 0 };
        let own = order(arrival.rank, share, arrival.deadline, arrival.now);
        let own = joins.map_or(own, |index| self.batches[index].order(is_contended).min(own));
        let ahead =
            |(index, batch): &(usize, &Waiting<P>)| joins != Some(*index) && batch.order(is_contended) <= own;
        let before = self.batches.iter().enumerate().filter(ahead).map(|(_, batch)| batch.service);
        let wait = (replicas.rest + before.sum::<Duration>()) / replicas.ready;
        Some(arrival.now + wait + service + knobs.slack)
    }

    /// A new batch, still without requests; returns its index.
    pub fn open(&mut self, arrival: &Arrival, max_rows: u32, payload: P) -> usize {
        let Arrival { edge, now, .. } = *arrival;
        let batch = Waiting {
            payload,
            rows: 0,
            max_rows,
            edge,
            requests: 0,
            writing: 0,
            sealed: false,
            born: now,
            deadline: None,
            service: Duration::ZERO,
            rank: LOWEST,
            share: u64::MAX,
        };
        self.batches.push_back(batch);
        self.batches.len() - 1
    }

    /// Counts a request into the batch at `index`, which takes the place that its most urgent request has.
    pub fn add(&mut self, index: usize, arrival: &Arrival, knobs: &Knobs) -> &mut Waiting<P> {
        let share = self.tenants.enter(arrival.account, arrival.rows);
        let batch = &mut self.batches[index];
        batch.rows += arrival.rows;
        batch.requests += 1;
        batch.rank = batch.rank.min(arrival.rank);
        batch.share = batch.share.min(share);
        batch.deadline = batch.deadline.into_iter().chain(arrival.deadline).min();
        batch.service = knobs.service.predict(batch.edge, batch.rows).unwrap_or_default();
        self.advance(index)
    }

    /// A batch that has left comes back and runs before everything else.
    pub fn again(&mut self, mut batch: Waiting<P>) {
        (batch.sealed, batch.rank) = (true, RERUN);
        self.batches.push_back(batch);
        self.advance(self.batches.len() - 1);
    }

    /// Moves a batch in front of those that it now precedes.
    fn advance(&mut self, mut index: usize) -> &mut Waiting<P> {
        let precedes = |line: &Self, index: usize| {
            line.batches[index].order(false) < line.batches[index - 1].order(false)
        };
        while index > 0 && precedes(self, index) {
            self.batches.swap(index, index - 1);
            index -= 1;
        }
        &mut self.batches[index]
    }

    /// The first batch that may leave. One with written rows that only waits for a writer takes no more requests.
    pub fn choose(&mut self, now: Instant, knobs: &Knobs) -> Option<Leaving<P>> {
        let is_contended = self.tenants.is_contended();
        let mut first: Option<(usize, Order, Closed)> = None;
        for (index, batch) in self.batches.iter_mut().enumerate() {
            if first.is_some_and(|(_, (rank, ..), _)| !is_contended || rank < batch.rank) {
                break;
            }
            let Some(closed) = batch.closes(knobs, now) else { continue };
            if batch.writing > 0 {
                batch.sealed |= batch.requests > batch.writing;
                continue;
            }
            let order = batch.order(is_contended);
            if first.is_none_or(|(_, least, _)| order < least) {
                first = Some((index, order, closed));
            }
        }
        let (index, _, closed) = first?;
        let batch = self.batches.remove(index)?;
        self.tenants.serve(batch.share);
        let is_known = !batch.service.is_zero() && !self.batches.is_empty();
        let hopeless = is_known.then(|| now + batch.service);
        Some(Leaving { batch, closed, hopeless })
    }

    /// When `choose` must be asked again if nothing else happens and a replica is free. A batch that is being written tells
    /// when it is ready.
    pub fn next_check(&self, knobs: &Knobs) -> Option<Instant> {
        if knobs.work_conserving {
            return None;
        }
        let ready = self.batches.iter().filter(|batch| batch.writing == 0);
        ready
            .map(|batch| (batch.born + knobs.tau).min(batch.latest(knobs).unwrap_or(batch.born + knobs.tau)))
            .min()
    }

    /// Predicts all service times anew, because the knobs have changed.
    pub fn predict(&mut self, knobs: &Knobs) {
        for batch in &mut self.batches {
            batch.service = knobs.service.predict(batch.edge, batch.rows).unwrap_or_default();
        }
    }

    /// When the oldest batch was born.
    pub fn oldest(&self) -> Option<Instant> {
        self.batches.iter().map(|batch| batch.born).min()
    }

    /// Whether no batch waits.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The batches, the first to leave first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Waiting<P>> {
        self.batches.iter()
    }

    /// The batches, to be changed in nothing that decides their order.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Waiting<P>> {
        self.batches.iter_mut()
    }

    /// Takes out the first batch that is like this.
    pub fn take(&mut self, is_wanted: impl Fn(&Waiting<P>) -> bool) -> Option<Waiting<P>> {
        let index = self.batches.iter().position(is_wanted)?;
        self.batches.remove(index)
    }

    /// Forgets batches that are not like this.
    pub fn retain(&mut self, is_kept: impl Fn(&Waiting<P>) -> bool) {
        self.batches.retain(is_kept);
    }
}
