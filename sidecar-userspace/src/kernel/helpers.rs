//! Which helpers the programs of the kernel half may call, checked against the object that this binary embeds.
//!
//! The kernel offers each helper to some types of program only, and to more of them with every release. A program that
//! calls one that its type is not offered is refused as a whole, so that one call in a function that several programs
//! share takes the whole kernel half away from older kernels. The tables are of Linux 5.15, the oldest kernel that is
//! supported: its `*_func_proto` functions in net/core/filter.c, kernel/bpf/cgroup.c, kernel/bpf/helpers.c and
//! kernel/trace/bpf_trace.c. They list what may be of use here, and may be extended from there.

#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::{
    Object, ProgramSection,
    generated::{BPF_CALL, BPF_JMP, bpf_func_id, bpf_func_id::*},
    programs::{CgroupSockAddrAttachType as SockAddr, CgroupSockoptAttachType as SockOpt},
};

use super::load::OBJECT;

/// All types, `bpf_base_func_proto`; those that read kernel memory need CAP_PERFMON.
const BASE: &[bpf_func_id] = &[
    BPF_FUNC_map_lookup_elem,
    BPF_FUNC_map_update_elem,
    BPF_FUNC_map_delete_elem,
    BPF_FUNC_for_each_map_elem,
    BPF_FUNC_get_prandom_u32,
    BPF_FUNC_get_smp_processor_id,
    BPF_FUNC_tail_call,
    BPF_FUNC_ktime_get_ns,
    BPF_FUNC_ktime_get_boot_ns,
    BPF_FUNC_ringbuf_output,
    BPF_FUNC_ringbuf_reserve,
    BPF_FUNC_ringbuf_submit,
    BPF_FUNC_ringbuf_discard,
    BPF_FUNC_spin_lock,
    BPF_FUNC_spin_unlock,
    BPF_FUNC_jiffies64,
    BPF_FUNC_probe_read_kernel,
];

/// Types whose default is `bpf_sk_base_func_proto`.
const SOCKET_BASE: &[bpf_func_id] = &[BPF_FUNC_skc_to_tcp_sock, BPF_FUNC_skc_to_tcp6_sock];

const STORAGE: &[bpf_func_id] = &[BPF_FUNC_sk_storage_get, BPF_FUNC_sk_storage_delete];

/// Hooks in the context of the task whose system call it is.
const TASK: &[bpf_func_id] = &[
    BPF_FUNC_get_current_pid_tgid,
    BPF_FUNC_get_current_uid_gid,
    BPF_FUNC_get_current_cgroup_id,
    BPF_FUNC_get_current_ancestor_cgroup_id,
];

const COOKIES: &[bpf_func_id] = &[BPF_FUNC_get_socket_cookie, BPF_FUNC_get_netns_cookie];

/// A helper that Linux 5.15 does not offer to a type of program. Its program must be one that the others can do without
/// where it is refused, or the call must be behind a constant that is set at load, so that the verifier never sees it.
struct Newer {
    helper: bpf_func_id,
    section: fn(&ProgramSection) -> bool,
    /// The first kernel that offers it to them.
    since: &'static str,
    /// The program that the others do without, or the constant.
    behind: &'static str,
}

const NEWER: &[Newer] = &[Newer {
    helper: BPF_FUNC_set_retval,
    section: |section| {
        matches!(
            section,
            ProgramSection::CgroupSockAddr {
                attach_type: SockAddr::Connect4 | SockAddr::Connect6
            }
        )
    },
    since: "5.18",
    behind: "set_retval",
}];

/// What Linux 5.15 offers to programs of a section's type and attach type.
fn offered(section: &ProgramSection) -> Option<Vec<&'static [bpf_func_id]>> {
    Some(match section {
        // `sock_filter_func_proto`, which ends in the base: no `skc_to_tcp_sock`, no deleting of storage.
        ProgramSection::CgroupSock { .. } => {
            vec![BASE, TASK, COOKIES, &[BPF_FUNC_sk_storage_get]]
        }
        ProgramSection::CgroupSockAddr { attach_type } => {
            let options: &[bpf_func_id] = &[BPF_FUNC_setsockopt, BPF_FUNC_getsockopt];
            let bind: &[bpf_func_id] = match attach_type {
                SockAddr::Connect4 | SockAddr::Connect6 => &[BPF_FUNC_bind],
                _ => &[],
            };
            let lookup: &[bpf_func_id] = &[BPF_FUNC_sk_lookup_tcp, BPF_FUNC_sk_release];
            vec![
                BASE,
                SOCKET_BASE,
                TASK,
                COOKIES,
                STORAGE,
                options,
                bind,
                lookup,
            ]
        }
        // `cg_sockopt_func_proto`, which ends in `cgroup_base_func_proto`: no pid, no cookies.
        ProgramSection::CgroupSockopt { attach_type } => {
            let own: &[bpf_func_id] = match attach_type {
                SockOpt::Set => &[BPF_FUNC_setsockopt],
                SockOpt::Get => &[],
            };
            let base: &[bpf_func_id] = &[
                BPF_FUNC_tcp_sock,
                BPF_FUNC_get_current_uid_gid,
                BPF_FUNC_get_current_cgroup_id,
            ];
            vec![BASE, STORAGE, base, own]
        }
        ProgramSection::SockOps => vec![
            BASE,
            SOCKET_BASE,
            COOKIES,
            STORAGE,
            &[
                BPF_FUNC_setsockopt,
                BPF_FUNC_getsockopt,
                BPF_FUNC_sock_ops_cb_flags_set,
                BPF_FUNC_sock_map_update,
                BPF_FUNC_sock_hash_update,
                BPF_FUNC_tcp_sock,
                BPF_FUNC_load_hdr_opt,
            ],
        ],
        // No socket's cookie.
        ProgramSection::SkMsg => vec![
            BASE,
            SOCKET_BASE,
            TASK,
            STORAGE,
            &[
                BPF_FUNC_get_netns_cookie,
                BPF_FUNC_msg_redirect_map,
                BPF_FUNC_msg_redirect_hash,
                BPF_FUNC_msg_apply_bytes,
                BPF_FUNC_msg_cork_bytes,
                BPF_FUNC_msg_pull_data,
            ],
        ],
        // In softirq for the most part: nothing of the current task, no cookie of the network namespace.
        ProgramSection::SkLookup => vec![
            BASE,
            SOCKET_BASE,
            &[BPF_FUNC_sk_assign, BPF_FUNC_sk_release],
        ],
        ProgramSection::CgroupSkb { .. } => vec![
            BASE,
            SOCKET_BASE,
            STORAGE,
            &[
                BPF_FUNC_skb_load_bytes,
                BPF_FUNC_skb_load_bytes_relative,
                BPF_FUNC_get_socket_cookie,
                BPF_FUNC_get_socket_uid,
                BPF_FUNC_sk_fullsock,
                BPF_FUNC_tcp_sock,
                BPF_FUNC_skb_cgroup_id,
                BPF_FUNC_skb_ancestor_cgroup_id,
                BPF_FUNC_sk_cgroup_id,
                BPF_FUNC_sk_ancestor_cgroup_id,
            ],
        ],
        ProgramSection::SchedClassifier => vec![
            BASE,
            SOCKET_BASE,
            STORAGE,
            &[
                BPF_FUNC_skb_load_bytes,
                BPF_FUNC_skb_load_bytes_relative,
                BPF_FUNC_skb_pull_data,
                BPF_FUNC_get_socket_cookie,
                BPF_FUNC_sk_fullsock,
                BPF_FUNC_tcp_sock,
                BPF_FUNC_skb_cgroup_id,
                BPF_FUNC_skb_ancestor_cgroup_id,
            ],
        ],
        // `tracing_prog_func_proto`, from 5.14 with the ancestors of the task's cgroup.
        ProgramSection::BtfTracePoint | ProgramSection::Iter { .. } => vec![
            BASE,
            SOCKET_BASE,
            TASK,
            STORAGE,
            &[
                BPF_FUNC_get_socket_cookie,
                BPF_FUNC_get_current_task_btf,
                BPF_FUNC_task_pt_regs,
                BPF_FUNC_probe_read_user,
            ],
        ],
        _ => return None,
    })
}

/// The helpers that each program of the object calls, the functions that it calls included.
fn called(object: &mut Object) -> BTreeMap<String, BTreeSet<i32>> {
    // As the loader does it: functions of .text become part of each program that calls them.
    let sections = object.functions.keys().map(|key| key.0);
    let sections: HashSet<usize> = sections.collect();
    object
        .relocate_calls(&sections)
        .expect("the object's calls resolve");
    let programs = object.programs.iter().map(|(name, program)| {
        let function = &object.functions[&program.function_key()];
        let calls = function.instructions.iter().filter(|instruction| {
            // Source register 0: a helper. 1 is a function of the program, 2 one of the kernel.
            u32::from(instruction.code) == BPF_JMP | BPF_CALL && instruction.src_reg() == 0
        });
        (name.clone(), calls.map(|call| call.imm).collect())
    });
    programs.collect()
}

#[test]
fn every_program_calls_only_helpers_that_linux_5_15_offers_it() {
    assert!(
        !OBJECT.is_empty(),
        "this test binary was built without the kernel half: run `cargo xtask build` first"
    );
    let mut object = Object::parse(OBJECT).expect("the embedded object");
    let called = called(&mut object);
    let mut refused = Vec::new();
    for (name, helpers) in &called {
        let section = &object.programs[name].section;
        let Some(offered) = offered(section) else {
            refused.push(format!(
                "{name}: no table for {section:?} yet, see `offered`"
            ));
            continue;
        };
        for helper in helpers {
            let known = offered
                .iter()
                .any(|list| list.iter().any(|id| *id as i32 == *helper));
            let newer = NEWER
                .iter()
                .any(|newer| newer.helper as i32 == *helper && (newer.section)(section));
            if !known && !newer {
                refused.push(format!(
                    "{name} calls helper {helper}, which is not offered to {section:?}"
                ));
            }
        }
    }
    assert!(
        called.values().any(|helpers| !helpers.is_empty()),
        "no helper was found in the object"
    );
    assert!(
        refused.is_empty(),
        "on Linux 5.15:\n  {}",
        refused.join("\n  ")
    );
}

#[test]
fn what_is_newer_says_since_when_and_behind_what() {
    for newer in NEWER {
        let (helper, since) = (newer.helper as u32, newer.since);
        let version: Vec<u32> = since
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect();
        assert!(
            version.as_slice() > [5, 15].as_slice(),
            "helper {helper} since {since}"
        );
        assert!(!newer.behind.is_empty(), "helper {helper}: behind what?");
    }
}
