//! An operator's commands: taken in with a client's frames, carried out in the turn, answered at
//! once. What takes longer shows in the status.

use std::collections::VecDeque;

use super::Shard;
use crate::ids::{GroupId, NodeId, Tick};
use crate::machine::StateMachine;
use crate::raft::TransferRefused;
use crate::wire::admin::{AdminReply, AdminRequest, MemberStep};
use crate::wire::client::{Refused, read_query};
use crate::wire::frame::{Frame, FrameError};

/// Commands that wait for a turn; further ones are refused as `Busy`.
const WAITING_MAX: usize = 256;

/// One command and who waits for its answer.
struct Waiting {
    conn: u64,
    token: u64,
    local: u32,
    request: AdminRequest,
}

/// Commands taken in since the last turn.
#[derive(Default)]
pub(super) struct Admin {
    waiting: VecDeque<Waiting>,
}

impl Admin {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl<M: StateMachine> Shard<M> {
    pub(super) fn admin(&mut self, conn: u64, frame: &Frame) -> Result<(), FrameError> {
        let query = read_query(frame)?;
        let (token, group) = (query.token, query.group);
        let json = query.result.map_err(|_| FrameError::BadEntry(0))?;
        let crowded = self.admin.waiting.len() >= WAITING_MAX || !self.client_may_send(conn);
        match (self.local(group), AdminRequest::from_json(&json)) {
            _ if crowded => self.answer_admin(conn, token, group, Err(Refused::Busy)),
            (None, _) => {
                let refused = self.no_group(group);
                self.answer_admin(conn, token, group, Err(refused));
            }
            (_, Err(error)) => {
                let reply = AdminReply::refused(format!("not a command of this version: {error}"));
                self.answer_admin(conn, token, group, Ok(reply));
            }
            (Some(local), Ok(request)) => {
                self.admin.waiting.push_back(Waiting { conn, token, local, request });
            }
        }
        Ok(())
    }

    /// Carries out what was taken in since the last turn.
    pub(super) fn run_admin(&mut self, now: Tick) {
        while let Some(Waiting { conn, token, local, request }) = self.admin.waiting.pop_front() {
            let group = self.config.group_at(local);
            let result = match self.local(group) {
                Some(local) => self.carry_out(now, local, request),
                None => Err(Refused::NoGroup),
            };
            self.answer_admin(conn, token, group, result);
        }
    }

    /// One command to one group. `Err` sends the caller elsewhere, as with a proposal.
    fn carry_out(
        &mut self,
        now: Tick,
        local: u32,
        request: AdminRequest,
    ) -> Result<AdminReply, Refused> {
        match request {
            AdminRequest::Show => {
                Ok(AdminReply::done("as this node sees it").with(self.group_status(local as usize)))
            }
            AdminRequest::Transfer { to } => {
                let to = to.map_or_else(|| self.home(local), NodeId);
                match self.hand_over(now, local, to) {
                    Ok(()) => Ok(AdminReply::done(format!("handing over to node {to}"))
                        .with(serde_json::json!({ "to": to.0 }))),
                    Err(TransferRefused::NotLeader(leader)) => Err(Refused::NotLeader(leader)),
                    Err(TransferRefused::Already(to)) => {
                        Ok(AdminReply::done(format!("node {to} leads already")))
                    }
                    Err(why) => Ok(AdminReply::refused(why.to_string())),
                }
            }
            AdminRequest::Groups
            | AdminRequest::CreateGroups { .. }
            | AdminRequest::DeleteGroup { .. }
                if local > 0 =>
            {
                let first = self.config.group_at(0);
                let text = format!("group {first} keeps the list of the groups here: ask that one");
                Ok(AdminReply::refused(text))
            }
            AdminRequest::Groups => self.show_list(),
            AdminRequest::CreateGroups { group, count, request, dry } => {
                let group = group.map(GroupId);
                let result = self.create_groups(now, group, count, request, dry);
                self.answer_about_list("make", result)
            }
            AdminRequest::DeleteGroup { group, dry } => {
                let result = self.delete_group(now, GroupId(group), dry);
                self.answer_about_list("delete", result)
            }
            AdminRequest::Members => Ok(self.list_members(now, local)),
            AdminRequest::Change { steps, force, dry } => {
                let steps: Vec<_> = steps.iter().map(MemberStep::step).collect();
                self.change_members(now, local, &steps, force, dry)
            }
        }
    }

    fn answer_admin(
        &mut self,
        conn: u64,
        token: u64,
        group: GroupId,
        result: Result<AdminReply, Refused>,
    ) {
        if let Err(refused) = result {
            self.stats.refused[refused.kind()] += 1;
        }
        let result = result.map(|reply| reply.to_json());
        self.clients.reply_admin(conn, token, group, result.as_deref().map_err(|&refused| refused));
    }
}
