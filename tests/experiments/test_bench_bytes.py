"""Bytes of a program: operands and results, with what libraries do, without their scratch."""

import jax
import jax.numpy as jnp

from experiments.bench_bytes import moved, size

PROGRAM = """HloModule m

%fused (p: f32[9]) -> f32[9] {
  %p = f32[9]{0} parameter(0)
  ROOT %n = f32[9]{0} negate(%p)
}

ENTRY %main (a: bf16[2,3], b: f32[3,4]) -> f32[2,4] {
  %a = bf16[2,3]{1,0} parameter(0)
  %b = f32[3,4]{1,0} parameter(1), metadata={op_name="b"}
  %c = f32[2,3]{1,0} fusion(%a), kind=kLoop, calls=%fused
  %d = (f32[2,4]{1,0}, s8[4096]{0}) custom-call(%c, %b), custom_call_target="__cublas$gemm"
  ROOT %e = f32[2,4]{1,0} get-tuple-element(%d), index=0
}
"""


def test_what_is_taken_and_given_is_counted():
    fusion, library = 12 + 24, 24 + 48 + 32
    assert moved(PROGRAM) == fusion + library


def test_an_operation_may_take_many():
    names = [f'a{n}' for n in range(12)]
    given = [f'  %{name} = f32[4]{{0}} parameter({n})' for n, name in enumerate(names)]
    words = [f'%{name}' for name in names]
    words[5], words[10] = '/*index=5*/%a5', '/*index=10*/%a10'  # as XLA writes them
    taken = ', '.join(words)
    last = f'  ROOT %b = f32[4]{{0}} fusion({taken}), kind=kLoop, calls=%fused'
    assert moved('\n'.join(['', 'ENTRY %main {', *given, last, '}'])) == 13 * 16


def test_shapes_have_sizes():
    assert size('bf16[16,38,64,1024]{3,2,1,0}') == 16 * 38 * 64 * 1024 * 2
    assert size('(f32[2,3]{1,0}, pred[5]{0}, s32[])') == 24 + 5 + 4


def test_it_agrees_with_xla_where_xla_counts():
    matrix = jnp.ones((64, 64))
    compiled = jax.jit(lambda a, b: jnp.tanh(a @ b)).lower(matrix, matrix).compile()
    assert moved(compiled.as_text()) == compiled.cost_analysis()['bytes accessed']
