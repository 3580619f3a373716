use super::*;

const ME: LogIdentity = LogIdentity { cluster: 7, node: 2, disk: 9 };

fn opening(boot: u128) -> Opening {
    let voters = [3, 1, 2].map(NodeId).to_vec();
    Opening { identity: ME, boot, shards: 2, voters, others: Vec::new(), unsynced: 5 }
}

fn next_start(previous: Option<&BootRecord>, boot: u128) -> (BootRecord, StartVerdict) {
    BootRecord::open(previous, &opening(boot)).unwrap()
}

fn write(slots: &mut [u8], record: &BootRecord) {
    let (slot, bytes) = record.encode().unwrap();
    slots[slot as usize * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&bytes);
}

fn running(boot: u128) -> BootRecord {
    next_start(None, boot).0
}

#[test]
fn each_end_of_a_node_has_its_verdict() {
    let clean = BootRecord { state: BootState::Clean, ..running(1) };
    let recovering = Suspect::Unsynced;
    let still_recovering = BootRecord { recovering, ..running(1) };
    let clean_recovering = BootRecord { recovering, ..clean.clone() };
    let start = |previous: &BootRecord, boot| {
        let (record, verdict) = next_start(Some(previous), boot);
        (verdict, record.recovering)
    };
    let nobody = Suspect::Nothing;
    assert_eq!(next_start(None, 1).1, StartVerdict::Fresh);
    assert_eq!(running(1).recovering, nobody);
    assert_eq!(start(&clean, 1), (StartVerdict::Clean, nobody));
    assert_eq!(start(&clean, 2), (StartVerdict::Clean, nobody), "stopped, then rebooted");
    assert_eq!(start(&running(1), 1), (StartVerdict::ProcessCrash, nobody));
    let lost = (StartVerdict::PowerLossOrUnknown, recovering);
    assert_eq!(start(&running(1), 2), lost);
    assert_eq!(start(&still_recovering, 1), lost, "killed before its memory was back");
    assert_eq!(start(&clean_recovering, 1), lost, "and a clean stop does not bring it back");
    let rot = BootRecord { recovering: Suspect::Everything, ..running(1) };
    assert_eq!(start(&rot, 2).1, Suspect::Everything);
}

#[test]
fn who_is_suspected_goes_by_how_the_groups_ran_before() {
    let recovering = |before: u64, now: u64| {
        let previous = BootRecord { unsynced: before, ..running(1) };
        let now = Opening { unsynced: now, ..opening(2) };
        BootRecord::open(Some(&previous), &now).unwrap().0.recovering
    };
    assert_eq!(recovering(0, 0), Suspect::Nothing, "all of it was synced");
    assert_eq!(recovering(0, 5), Suspect::Nothing);
    assert_eq!(recovering(5, 5), Suspect::Unsynced);
    assert_eq!(recovering(5, 0), Suspect::Everything, "they sync now, and did not then");
    assert_eq!(recovering(5, 6), Suspect::Everything);
}

#[test]
fn the_incarnation_counts_every_start_and_a_torn_write_leaves_the_other_slot() {
    let mut slots = vec![0; 2 * SLOT_BYTES];
    assert_eq!(BootRecord::decode(&slots), Ok(None));
    let mut last = None;
    for start in 1..=5 {
        let (mut record, _) = next_start(last.as_ref(), 1);
        assert_eq!(record.incarnation, Incarnation(start));
        record.durable = vec![Lsn(10 * u64::from(start)), Lsn(3)];
        let before = slots.clone();
        write(&mut slots, &record);
        assert_eq!(BootRecord::decode(&slots), Ok(Some(record.clone())));
        for torn in (512..SLOT_BYTES).step_by(512) {
            let at = (record.writes % 2) as usize * SLOT_BYTES;
            let mut half = slots.clone();
            half[at + torn - 512..at + SLOT_BYTES]
                .copy_from_slice(&before[at + torn - 512..at + SLOT_BYTES]);
            half[at] ^= 1;
            match last.as_ref() {
                Some(last) => {
                    assert_eq!(BootRecord::decode(&half), Ok(Some(last.clone().beside_damage())));
                }
                None => assert_eq!(BootRecord::decode(&half), Err(BootError::Damaged)),
            }
        }
        last = Some(record);
    }
}

#[test]
fn every_flipped_bit_of_a_slot_falls_back_to_the_other_as_after_a_loss_of_power() {
    let mut slots = vec![0; 2 * SLOT_BYTES];
    let first = running(1);
    write(&mut slots, &first);
    let second = next_start(Some(&first), 1).0;
    write(&mut slots, &second);
    let at = (second.writes % 2) as usize * SLOT_BYTES;
    for bit in 0..480 * 8 {
        let mut bad = slots.clone();
        bad[at + bit / 8] ^= 1 << (bit % 8);
        let found = BootRecord::decode(&bad).unwrap();
        assert_eq!(found, Some(first.clone().beside_damage()), "bit {bit}");
    }
    // What the damaged record said is not known: no start under its number, and no plain vote.
    let (next, verdict) = next_start(Some(&first.clone().beside_damage()), 1);
    assert!(next.incarnation > second.incarnation);
    assert_eq!((verdict, next.recovering), (StartVerdict::PowerLossOrUnknown, Suspect::Unsynced));
    assert_ne!(next.encode().unwrap().0, first.encode().unwrap().0, "the good slot stays");
}

#[test]
fn a_stranger_is_named() {
    let other = LogIdentity { disk: 10, ..ME };
    let error = running(1).check_identity(&other).unwrap_err();
    assert_eq!(error, BootError::Identity { what: "disk", found: 9, expected: 10 });
    assert_eq!(running(1).check_identity(&ME), Ok(()));
}

#[test]
fn another_number_of_shards_or_another_list_of_nodes_is_refused_by_name() {
    let before = running(1);
    let refused = |change: fn(&mut Opening)| {
        let mut now = opening(1);
        change(&mut now);
        BootRecord::open(Some(&before), &now).unwrap_err()
    };
    let shards = refused(|now| now.shards = 3);
    assert_eq!(shards, BootError::ShardCount { found: 2, expected: 3 });
    let nodes = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
    let text = |listed: &[u32]| {
        before.check_nodes(&nodes(listed), &nodes(&[1, 2, 3]), &[]).unwrap_err().to_string()
    };
    let added = text(&[1, 2, 3, 4, 5]);
    assert!(added.contains("node 4, 5 was added;"), "{added}");
    let removed = text(&[1, 2]);
    assert!(removed.contains("node 3 was removed;"), "{removed}");
    let replaced = text(&[1, 2, 9]);
    assert!(replaced.contains("node 9 was added and node 3 removed;"), "{replaced}");
    assert_eq!(before.check_nodes(&nodes(&[3, 1, 2]), &nodes(&[1, 2, 3]), &[]), Ok(()));
    // Node 4 has joined and the list may name it; node 3 has left and need not be there.
    assert_eq!(before.check_nodes(&nodes(&[1, 2, 4]), &nodes(&[1, 2, 4]), &[]), Ok(()));
    assert_eq!(before.check_nodes(&nodes(&[1, 2]), &nodes(&[1, 2, 4]), &nodes(&[4])), Ok(()));
    let many = Opening { voters: (1..=16).map(NodeId).collect(), ..opening(1) };
    assert_eq!(BootRecord::open(None, &many).unwrap_err(), BootError::Voters(16));
}

#[test]
fn a_node_that_was_taken_in_keeps_its_disk_too() {
    let mut record = running(1);
    assert!(record.admit(NodeId(4)) && !record.admit(NodeId(4)) && !record.admit(NodeId(1)));
    assert_eq!(record.pin_disk(NodeId(4), 5), Some(true));
    let mut slots = vec![0; 2 * SLOT_BYTES];
    write(&mut slots, &record);
    let read = BootRecord::decode(&slots).unwrap().unwrap();
    assert_eq!(read, record);
    let mut next = BootRecord::open(Some(&read), &opening(2)).unwrap().0;
    assert_eq!(next.pin_disk(NodeId(4), 6), None);
    let full = (0..200).filter(|n| next.admit(NodeId(100 + n))).count();
    assert_eq!((full, next.encode().is_ok()), (59, true), "there is room for so many");
}

#[test]
fn a_voter_keeps_the_first_disk_it_is_seen_with() {
    let mut record = running(1);
    assert_eq!(record.pin_disk(NodeId(1), 77), Some(true));
    assert_eq!(record.pin_disk(NodeId(1), 77), Some(false), "known by now");
    assert_eq!(record.pin_disk(NodeId(1), 78), None, "wiped, or another machine");
    assert_eq!(record.pin_disk(NodeId(2), 9), Some(false), "its own was known from the start");
    assert_eq!(record.pin_disk(NodeId(4), 1), None, "no voter");
    let mut slots = vec![0; 2 * SLOT_BYTES];
    write(&mut slots, &record);
    let mut read = BootRecord::decode(&slots).unwrap().unwrap();
    assert_eq!(read, record);
    let mut next = BootRecord::open(Some(&read), &opening(2)).unwrap().0;
    assert_eq!(next.pin_disk(NodeId(1), 78), None, "after a restart, too");
    assert_eq!(read.pin_disk(NodeId(3), 0), None, "no disk is no identity");
}

#[test]
fn a_number_at_the_end_of_its_range_is_damage() {
    for (incarnation, writes) in [(u32::MAX, 1), (1, u64::MAX)] {
        let incarnation = Incarnation(incarnation);
        let (_, bytes) = BootRecord { incarnation, writes, ..running(1) }.encode().unwrap();
        assert_eq!(BootRecord::decode(&bytes), Err(BootError::Damaged));
    }
}

#[test]
fn a_fenced_disk_and_the_epoch_of_an_operator_outlive_restarts() {
    let mut record = running(1);
    assert_eq!(record.pin_disk(NodeId(1), 70), Some(true));
    record.fence_disk(NodeId(1));
    record.epoch = 3;
    let mut slots = vec![0; 2 * SLOT_BYTES];
    write(&mut slots, &record);
    let back = BootRecord::decode(&slots).unwrap().expect("it was written");
    let (mut next, _) = next_start(Some(&back), 2);
    assert_eq!(next.epoch, 3);
    assert_eq!((next.pin_disk(NodeId(1), 70), next.pin_disk(NodeId(1), 71)), (None, None));
    assert_eq!(next.pin_disk(NodeId(3), 72), Some(true), "the others come as before");
}
