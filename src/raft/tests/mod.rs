//! Tests of the group as a whole: a small world of nodes ([`world`]) that scripts drive by hand and
//! read back as a trace ([`script`]), and that chance drives while the paper's properties are
//! checked ([`random`]).

mod describe;
mod random;
mod rules;
mod script;
mod sleep;
mod world;
