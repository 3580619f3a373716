//! Once warm, the pure layers allocate nothing for a command. A binary of its own, because it counts
//! what the whole process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringraft::ids::GroupId;
use ringraft::raft::harness::{Cluster, sample_block};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; the
// counter is a const-initialised thread local without a destructor and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` or `realloc` above, that is from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as for `dealloc`; `size` is the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_warm_raft_group_of_three_allocates_nothing() {
    let block = sample_block(GroupId(0), 100, 128);
    let mut cluster = Cluster::new(3);
    let mut blocks = Vec::with_capacity(64);
    let mut rounds = |cluster: &mut Cluster, n: usize| {
        for round in 0..n {
            blocks.extend((0..1 + round % 64).map(|_| block.clone()));
            cluster.propose(&mut blocks);
            cluster.settle();
            if round % 16 == 0 {
                cluster.heartbeat();
            }
        }
    };
    rounds(&mut cluster, 200);
    let before = cluster.applied_commands();
    assert_eq!(allocations(|| rounds(&mut cluster, 1000)), 0);
    assert!(cluster.applied_commands() - before > 1_000_000, "the work was really done");
    assert!(allocations(|| drop(Vec::<u8>::with_capacity(9))) > 0, "the counter counts");
}
