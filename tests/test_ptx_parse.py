"""PTX text to instructions, and the C++ made of them: needs no CUDA toolkit."""

from __future__ import annotations

import re

import pytest
from ptx import translate
from ptx.parse import Module
from ptx.syntax import Bits, Clusters, Instruction, Integer, Label, Memory, Register, Special, Symbol
from ptx.text import declaration, integer, literal, split, statements

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(body: str, parameters: str = "", before: str = "") -> str:
    return f"{HEAD}{before}.visible .entry k({parameters}) {{\n{body}\n}}\n"


def instructions(text: str) -> list[Instruction]:
    return [i for i in Module(text).kernels[0].items if isinstance(i, Instruction)]


def test_split_leaves_brackets_alone() -> None:
    assert split("{%r1, %r2}, [%rd1+4], f<3>") == ["{%r1, %r2}", "[%rd1+4]", "f<3>"]


def test_statements_know_scopes_and_labels() -> None:
    assert list(statements("{ a; } $L: b {c, d};")) == ["{", "a", "}", "$L:", "b {c, d}"]


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("-0x10", -16), ("010", 8), ("0", 0)])
def test_integers(text: str, value: int) -> None:
    assert integer(text) == value


@pytest.mark.parametrize(
    ("text", "operand"),
    [
        ("0f3F800000", Bits(32, 0x3F800000)),
        ("0d3FF0000000000000", Bits(64, 0x3FF0000000000000)),
        ("1.0", Bits(64, 0x3FF0000000000000)),
        ("7U", Integer(7)),
        ("%tid.x", Special("tid.x")),
        ("WARP_SZ", Integer(32)),
        ("table", Symbol("table")),
    ],
)
def test_literals(text: str, operand: object) -> None:
    assert literal(text) == operand


def test_declarations() -> None:
    shared = declaration(".extern .shared .align 16 .b8 buffer[]")
    assert shared is not None
    assert (shared.name, shared.align, shared.dynamic) == ("buffer", 16, True)
    table = declaration(".visible .const .align 4 .u32 table[3] = {1, 2}")
    assert table is not None
    assert (table.size, table.data, table.dynamic) == (12, b"\1\0\0\0\2\0\0\0", False)
    assert declaration("ret") is None


def test_parameters_are_laid_out_as_in_c() -> None:
    parameters = ".param .u32 a, .param .u64 .ptr .global .align 4 b, .param .align 8 .b8 c[12]"
    offsets = [(p.name, p.offset, p.size) for p in Module(kernel("ret;", parameters)).kernels[0].parameters]
    assert offsets == [("a", 0, 4), ("b", 8, 8), ("c", 16, 12)]


def test_guards_addresses_and_places() -> None:
    body = ".reg .pred %p<2>; .reg .b32 %r<2>; .reg .b64 %rd<2>;\n.loc 1 7 3\n@!%p1 ld.global.u32 %r1, [%rd1+-4];"
    load = instructions(kernel(body) + '.file 1 "/somewhere/source.cu"\n')[0]
    assert load.op == ("ld", "global", "u32")
    assert load.negated
    assert isinstance(load.guard, Register)
    assert load.place == "source.cu:7"
    assert isinstance(load.args[1], Memory)
    assert load.args[1].offset == -4


@pytest.mark.parametrize(
    ("attributes", "clusters", "table"),
    [
        (".maxntid 64, 1, 1", None, "SITES}"),
        (".explicitcluster .reqnctapercluster 4, 2, 1", Clusters((4, 2, 1), 0, True), "SITES, {4, 2, 1}, 0, 1}"),
        (".reqnctapercluster 4", Clusters((4, 1, 1), 0, False), "SITES, {4, 1, 1}, 0, 0}"),
        (".maxclusterrank 8", Clusters((0, 0, 0), 8, False), "SITES, {0, 0, 0}, 8, 0}"),
    ],
)
def test_what_an_entry_says_of_clusters(attributes: str, clusters: Clusters | None, table: str) -> None:
    text = kernel("ret;").replace("k()", f"k() {attributes}")
    assert Module(text).kernels[0].clusters == clusters
    assert f"{table};" in translate(text).code


def test_an_aligned_barrier_of_the_cluster_is_for_the_whole_warp() -> None:
    for op, together in (("arrive.release", False), ("wait.acquire.aligned", True)):
        assert ("at.execute_together" in translate(kernel(f"barrier.cluster.{op};")).code) == together


def test_a_call_is_its_body() -> None:
    function = (
        ".func (.param .b32 result) twice(.param .b32 x) { .reg .b32 %r<3>; ld.param.u32 %r1, [x];"
        " add.s32 %r2, %r1, %r1; st.param.b32 [result], %r2; ret; }\n"
    )
    body = (
        ".reg .b32 %r<3>; { .param .b32 a; st.param.b32 [a], %r1; .param .b32 b;"
        " call.uni (b), twice, (a); ld.param.b32 %r2, [b]; }"
    )
    names = [i.name for i in instructions(kernel(body, before=function))]
    assert names == ["st", "ld", "add", "st", "bra", "ld", "ret"]  # bra: the function's ret


def test_labels_of_inlined_functions_are_their_own() -> None:
    function = ".func f() { $L: bra $L; }\n"
    items = Module(kernel("$L: call f; call f; bra $L;", before=function)).kernels[0].items
    labels = [i.name for i in items if isinstance(i, Label)]
    assert len(labels) == len(set(labels)) == 5  # one of the kernel, and of each call its own and its end


def test_translation_lists_what_it_does_not_know() -> None:
    body = ".reg .b64 %rd<2>;\nwgmma.fence.sync.aligned;\nret;"
    result = translate(kernel(body))
    assert len(result.unsupported) == 1
    assert result.unsupported[0].startswith("k: wgmma.fence.sync.aligned")
    assert "unsupported(w, M, sites[offsets[0]]);" in result.code


def test_the_table_of_a_kernel() -> None:
    code = translate(kernel("ret;", ".param .u64 p"), target=90, registers={"k": 12}).code
    assert '{"k", run, 0, 0, 0, 8, offsets, sizes, 1, 12, 0, 90, SITES}' in code


def test_basic_blocks_that_do_the_same_are_one_function() -> None:
    """Whatever their registers are called, and wherever these lie."""
    blocks = "add.u32 %a1, %a2, %a3; bra $L; $L: add.u32 %a7, %a5, %a6; bra $M; $M: mov.u32 %a1, %a7; ret;"
    text = kernel(f".reg .b32 %a<9>; {blocks}")
    result = translate(text)
    assert len(result.steps) == 2
    assert "OFFSETS[] = {0, 128, 256, 384, 512, 640, 0, 384};" in result.code
    assert result.code.count("End::branch, -1, false") == 2
    other = translate(text.replace("add.u32 %a7, %a5, %a6", "add.u32 %a7, %a5, %a5"))
    assert len(other.steps) == 3


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ("add.u32 %a1, %a2, %a3; mul.lo.u32 %a2, %a1, %a1; bra $L; $L: add.u32 %a3, %a2, %a4; bra $L;", 1),
        ("add.u32 %a1, %a2, %a3; bra $L; $L: add.u32 %a2, %a1, %a4; bra $L;", 0),  # another block reads it
        ("$L: add.u32 %a1, %a1, %a2; bra $L;", 0),  # so does the same one, the next time
        ("$L: @%p1 mov.u32 %a1, 3; add.u32 %a2, %a1, %a2; bra $L;", 0),
        ("add.u32 %a1, %a2, %a3; st.global.u32 [%d1], %a1; ret;", 0),  # not the loop's alone
        ("setp.eq.u32 %p1, %a2, %a3; @%p1 bra $L; $L: ret;", 0),
    ],
)
def test_what_one_loop_alone_uses_is_its_variable(body: str, variables: int) -> None:
    code = translate(kernel(f".reg .b32 %a<9>; .reg .b64 %d<2>; .reg .pred %p<2>; {body}")).code
    assert len(set(re.findall(r"\bown\d", code))) == variables


def test_instructions_on_registers_alone_share_a_loop() -> None:
    body = ".reg .b32 %a<9>; .reg .b64 %d<2>; .reg .pred %p<2>; add.u32 %a1, %a2, %a3; @!%p1 mov.u32 %a4, %a1; "
    ((_, code),) = translate(kernel(body + "st.global.u32 [%d1], %a4; mul.lo.u32 %a5, %a4, %a4; ret;")).steps.items()
    assert code.count("for (int l = 0; l < lanes; ++l)") == 3  # before the store, the store, after it
