use super::world::World;
pub fn worlds() -> Vec<World> {
    vec![World { campaigns: 2, proposals: 1, crashes: 0, terms: 2, ..World::new("plain") }]
}
