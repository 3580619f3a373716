//! From bytes that were cut anywhere to the header and the verified parts of a snapshot.

use super::header::{self, FIXED_BYTES, Header};
use super::{END_BYTES, Kind, PART_BYTES_MAX, PART_HEAD_BYTES, ReadError};
use crate::checksum::crc32c_append;
use crate::machine::snapshot::Fields;
use crate::mutants::{self, Mutant};

/// What comes out of a snapshot, in this order: the header, the sessions' bytes, the state's bytes,
/// the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Header(&'a Header),
    /// For [`restore_chunk`](crate::machine::StateMachine::restore_chunk) of the table of sessions.
    Sessions(&'a [u8]),
    /// For the same of the state machine.
    State(&'a [u8]),
    /// Everything was there and as it was written.
    End,
}

/// Where in the bytes it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header,
    Part,
    Ended,
    Failed(ReadError),
}

/// Reads one snapshot.
#[derive(Debug)]
pub struct SnapshotReader {
    place: Place,
    header: Header,
    header_checksum: u32,
    /// The item that is being put together; handed out when it has its size, cleared then.
    item: Vec<u8>,
    handed_out: bool,
    kind: Kind,
    parts: u64,
    sessions_bytes: u64,
    state_bytes: u64,
    checksum: u32,
    verified: u64,
}

impl Default for SnapshotReader {
    fn default() -> Self {
        Self::new()
    }
}

impl SnapshotReader {
    pub fn new() -> Self {
        Self {
            place: Place::Header,
            header: Header::default(),
            header_checksum: 0,
            item: Vec::new(),
            handed_out: false,
            kind: Kind::Sessions,
            parts: 0,
            sessions_bytes: 0,
            state_bytes: 0,
            checksum: 0,
            verified: 0,
        }
    }

    /// Takes bytes off the front of `input` until a piece is whole. `None`: all were taken, give it
    /// more. At most [`PART_BYTES_MAX`] bytes and a head are held, and no more than have arrived.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Piece<'a>>, ReadError> {
        if std::mem::take(&mut self.handed_out) {
            self.item.clear();
        }
        let outcome = match self.place {
            Place::Header => self.take_header(input),
            Place::Part => self.take_part(input),
            Place::Ended if input.is_empty() => return Ok(None),
            Place::Ended => Err(ReadError::Trailing),
            Place::Failed(error) => return Err(error),
        };
        match outcome {
            Ok(true) => Ok(Some(self.hand_out())),
            Ok(false) => Ok(None),
            Err(error) => {
                self.place = Place::Failed(error);
                Err(error)
            }
        }
    }

    /// Of everything before the end, once that was read: as [`super::SnapshotWriter::whole_checksum`].
    pub fn whole_checksum(&self) -> u32 {
        self.checksum
    }

    /// What it says of itself, once that was read and its checksum was right; before, an empty one.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes through the end of the last part that was whole: from here on a copy that was cut short
    /// can be gone on with.
    pub fn verified(&self) -> u64 {
        self.verified
    }

    /// All bytes were given: an error unless that was exactly one whole snapshot.
    pub fn finish(&self) -> Result<&Header, ReadError> {
        match self.place {
            Place::Ended => Ok(&self.header),
            Place::Failed(error) => Err(error),
            Place::Header | Place::Part => Err(ReadError::CutShort),
        }
    }

    /// Takes bytes until the item has `size` of them.
    fn fill(&mut self, size: usize, input: &mut &[u8]) -> bool {
        let missing = size.saturating_sub(self.item.len()).min(input.len());
        let (more, rest) = input.split_at(missing);
        self.item.extend_from_slice(more);
        *input = rest;
        self.item.len() >= size
    }

    fn take_header(&mut self, input: &mut &[u8]) -> Result<bool, ReadError> {
        if !self.fill(FIXED_BYTES, input) {
            return Ok(false);
        }
        let size = header::size(&self.item)?;
        if !self.fill(size, input) {
            return Ok(false);
        }
        (self.header, self.header_checksum) = header::decode(&self.item)?;
        self.checksum = crc32c_append(0, &self.item);
        Ok(true)
    }

    fn take_part(&mut self, input: &mut &[u8]) -> Result<bool, ReadError> {
        if !self.fill(PART_HEAD_BYTES, input) {
            return Ok(false);
        }
        let number = self.parts;
        let damaged = |what| Err(ReadError::Part { number, what });
        let mut head = Fields(&self.item);
        let (checksum, size) = (head.u32(), head.u32() as usize);
        let Some(kind) = Kind::from_wire(head.u32()) else { return damaged("its kind") };
        if head.u32() != 0 || head.u64() != number || kind < self.kind {
            return damaged("it is not the next one");
        }
        let sizes = if kind == Kind::End { END_BYTES..=END_BYTES } else { 1..=PART_BYTES_MAX };
        if !sizes.contains(&size) {
            return damaged("its size");
        }
        if !self.fill(PART_HEAD_BYTES + size, input) {
            return Ok(false);
        }
        let right = checksum == crc32c_append(self.header_checksum, &self.item[4..]);
        if !right && !mutants::is(Mutant::SnapshotUnverified) {
            return damaged("its checksum");
        }
        self.kind = kind;
        self.count(size as u64)?;
        Ok(true)
    }

    /// The part in `item` is right by itself.
    fn count(&mut self, size: u64) -> Result<(), ReadError> {
        match self.kind {
            Kind::Sessions => self.sessions_bytes += size,
            Kind::State => self.state_bytes += size,
            Kind::End => return self.check_end(),
        }
        self.parts += 1;
        self.checksum = crc32c_append(self.checksum, &self.item);
        Ok(())
    }

    fn check_end(&self) -> Result<(), ReadError> {
        let mut end = Fields(&self.item[PART_HEAD_BYTES..]);
        let counted = [self.sessions_bytes, self.state_bytes, self.parts];
        let all = counted.iter().all(|&count| count == end.u64());
        let whole = end.u32() == self.checksum && end.u32() == 0;
        let whole = whole || mutants::is(Mutant::SnapshotUnverified);
        if all && whole { Ok(()) } else { Err(ReadError::Incomplete) }
    }

    fn hand_out(&mut self) -> Piece<'_> {
        self.handed_out = true;
        self.verified += self.item.len() as u64;
        if self.place == Place::Header {
            self.place = Place::Part;
            return Piece::Header(&self.header);
        }
        let payload = &self.item[PART_HEAD_BYTES..];
        match self.kind {
            Kind::Sessions => Piece::Sessions(payload),
            Kind::State => Piece::State(payload),
            Kind::End => {
                self.place = Place::Ended;
                Piece::End
            }
        }
    }
}
