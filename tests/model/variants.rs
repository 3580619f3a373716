use super::world::{Disks, World};
pub fn worlds() -> Vec<World> {
    let spec = std::env::var("WORLD").unwrap_or_default();
    let mut w = World::new("custom");
    for part in spec.split(',') {
        let (k, v) = part.split_once('=').unwrap();
        let n: u8 = v.parse().unwrap();
        match k {
            "sync" => w.sync = n > 0,
            "disks" => w.disks = [Disks::Free, Disks::Written, Disks::Synced][n as usize],
            "pre" => w.pre_votes = n > 0,
            "terms" => w.terms = n.into(),
            "camp" => w.campaigns = n,
            "prop" => w.proposals = n,
            "beats" => w.beats = n,
            "down" => w.step_downs = n,
            "rep" => w.repeats = n,
            "crash" => w.crashes = n,
            "loss" => w.power_losses = n,
            "msg" => w.messages = n as usize,
            _ => panic!("{k}"),
        }
    }
    vec![w]
}
