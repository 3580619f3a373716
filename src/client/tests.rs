//! Stories of one client and three nodes, n0 to n2 (ids 1 to 3). Group g is first asked for at node
//! g % 3, and led by n0 unless the story says otherwise.

#[path = "tests/chaos.rs"]
mod chaos;
#[path = "tests/handshakes.rs"]
mod handshakes;
#[path = "tests/leaders.rs"]
mod leaders;
#[path = "tests/once.rs"]
mod once;
#[path = "tests/questions.rs"]
mod questions;
#[path = "tests/sessions.rs"]
mod sessions;
#[path = "tests/window.rs"]
mod window;
#[path = "tests/world.rs"]
mod world;
