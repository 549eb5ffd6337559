# SPDX-License-Identifier: Apache-2.0
"""multi_mono_sf: every weight of the original, and its outputs and states for weights and images by formulas."""

import itertools

import pytest

torch = pytest.importorskip('torch', reason='students need torch')

import multi_mono_sf_golden as golden  # noqa: E402

from training.students import MONO_STUDENTS, build_student, mono_state  # noqa: E402
from training.students.flip_averaging import blended, flip_averaged, unflipped  # noqa: E402
from training.students.mono_geometry import flipped_intrinsics  # noqa: E402
from training.students.multi_mono_sf import MonoFlow, MultiMonoSf, normalised  # noqa: E402


def _expected_shapes():
    """Return the names and shapes of the checkpoints, from the description of the network."""
    shapes = {}

    def conv(name, num_in, num_out, size=3):
        shapes[f'{name}.0.weight'], shapes[f'{name}.0.bias'] = (num_out, num_in, size, size), (num_out,)

    for k, (num_in, num_out) in enumerate(itertools.pairwise((3, 32, 64, 96, 128, 192))):
        conv(f'feature_pyramid_extractor.convs.{k}.0', num_in, num_out)
        conv(f'feature_pyramid_extractor.convs.{k}.1', num_out, num_out)
    for level, num_in in enumerate((354, 393, 361, 329)):
        decoder = f'flow_estimators.{level}'
        conv(f'{decoder}.featprop_softsplat.conv1x1', 1, 1, 1)
        for part, channels in [
            ('convs', (num_in, 128, 128, 96)), ('conv_sf', (96, 64, 32, 3)), ('conv_d1', (96, 64, 32, 1)),
        ]:  # fmt: skip
            for k, pair in enumerate(itertools.pairwise(channels)):
                conv(f'{decoder}.{part}.{k}', *pair)
        conv(f'{decoder}.conv_c_init', 96, 96)
        conv(f'{decoder}.conv_lstm', 192, 384)
    for k in range(3):
        conv(f'upconv_layers.{k}.conv1', 96, 96)
    return shapes


@pytest.mark.parametrize('name', ['multi_mono_sf', 'multi_mono_sf_corrected'])
def test_weights_are_those_of_the_original(name):
    assert name in MONO_STUDENTS
    with torch.device('meta'):
        student = build_student(name)
    assert student.corrected is (name == 'multi_mono_sf_corrected')
    found = {key: tuple(value.shape) for key, value in student.state_dict().items()}
    assert list(found.items()) == list(_expected_shapes().items())
    assert len(found) == 122 and sum(parameter.numel() for parameter in student.parameters()) == 7_536_920


@pytest.fixture(scope='module')
def run():
    """Features of image 1, results and states of three steps, coverage of the splats of step 2."""
    student, images, coverage = golden.student(), golden.images(), []
    carrier = mono_state.Carrier.__init__

    def watched(self, *args, **options):
        carrier(self, *args, **options)
        coverage.append(float(self.coverage))

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mono_state.Carrier, '__init__', watched)
        features = [student.features(image) for image in images.unbind(1)]
        flows, states = [], [None]
        for k in range(3):
            flow, state = student.step(*features[k : k + 3], golden.intrinsics(), states[-1])
            flows.append(flow)
            states.append(state)
    return student, features[1], flows, states[1:], coverage[:3]


def _figures(values):
    return [float(values.mean()), float(values.std())]


def _near(expected):
    """Of figures with six decimals: 1e-5 of the figure, at least the last decimal."""
    return pytest.approx(expected, rel=1e-5, abs=1.5e-6)


def test_features_and_first_step_are_those_of_the_original(run):
    _, features, flows, states, _ = run
    for values, expected in zip(features, golden.FEATURES, strict=True):
        assert _figures(values) == _near(expected)
    for name, figures in golden.FIRST_STEP.items():
        for values, expected in zip(getattr(flows[0], name), figures, strict=True):
            assert _figures(values) == _near(expected), name
    assert _figures(states[0].flow) == _near(golden.FIRST_FLOW)
    assert [tuple(values.shape) for values in flows[0].disparity] == [
        (1, 1, 128 // size, 416 // size) for size in (1, 2, 4, 8)
    ]


def test_steps_with_a_state_are_those_of_the_original(run):
    _, _, flows, states, coverage = run
    assert coverage == _near(golden.COVERAGE)
    for step, expected in golden.STEPS.items():
        found = [part[0] for part in flows[step - 1]] + list(states[step - 1].forward_hidden)
        for values, figures in zip(found, expected, strict=True):
            assert _figures(values) == _near(figures), (step, values.shape)


@pytest.mark.parametrize('step', [1, 2, 3])
def test_pixels_are_those_of_the_original(run, step):
    flow = torch.cat([part[0] for part in run[2][step - 1]], dim=1)[0]
    for (row, column), expected in zip(golden.PIXELS, golden.AT_PIXELS[step], strict=True):
        assert flow[:, row, column].tolist() == _near(expected)


def test_flip_averaging_is_that_of_the_original(run):
    student, images, direct = run[0], golden.images(), run[2]
    with torch.no_grad():
        flipped = student.sequence(images.flip(-1), flipped_intrinsics(golden.intrinsics(), golden.WIDTH))
    found = [blended(one, unflipped(other)) for one, other in zip(direct, flipped, strict=True)]
    for name, expected in golden.FLIP_AVERAGED.items():
        assert _figures(torch.cat([getattr(flow, name)[0] for flow in found])) == _near(expected), name


def test_blending_takes_one_result_alone_at_each_border():
    ones, zeros = torch.ones(1, 1, 1, 101), torch.zeros(1, 1, 1, 101)
    found = blended(MonoFlow((), (), (ones,)), MonoFlow((), (), (zeros,))).disparity[0].flatten()
    assert found[:6].tolist() == [0] * 6 and found[50] == 0.5 and found[95:].tolist() == [1] * 6
    assert found[7].item() == pytest.approx((1 - (1 - 20 * 0.02)) / 2, abs=1e-6)


@pytest.fixture(scope='module')
def small():
    """Random weights, images of 64 x 64 px, and their intrinsics."""
    torch.manual_seed(0)
    intrinsics = torch.tensor([[[60.0, 0.0, 30.0], [0.0, 60.0, 31.0], [0.0, 0.0, 1.0]]])
    return MultiMonoSf(corrected=True).eval(), torch.rand(2, 4, 3, 64, 64), intrinsics.expand(2, 3, 3)


def test_flip_averaged_images_and_their_mirror_images_give_mirrored_results(small):
    student, images, intrinsics = small
    with torch.no_grad():
        direct = flip_averaged(student, images[:1, :3], intrinsics[:1])[0]
        mirrored = flip_averaged(student, images[:1, :3].flip(-1), flipped_intrinsics(intrinsics[:1], 64))[0]
    for one, other in zip(itertools.chain(*direct), itertools.chain(*unflipped(mirrored)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_features_are_normalised_over_all_axes_with_the_unbiased_variance():
    features = torch.rand(2, 5, 3, 4) * torch.tensor([1.0, 9.0]).reshape(2, 1, 1, 1)
    for one in normalised(features):
        assert one.mean().item() == pytest.approx(0, abs=1e-6) and one.std().item() == pytest.approx(1)


def test_corrected_state_is_carried_by_the_flow_in_cells_and_each_sample_counts_for_itself():
    maps = torch.zeros(2, 96, 8, 8)
    maps[:, :, 4, 4] = 1
    flow = torch.zeros(2, 2, 32, 32)
    flow[0, 0] = 8  # 2 cells of 4 px
    flow[1, 1] = 400  # nothing stays inside
    state = mono_state.MonoState((), (), (), flow, torch.full((2, 1, 32, 32), 0.1))
    features, gate = torch.ones(2, 5, 8, 8), torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.ones_(gate.weight)
    torch.nn.init.zeros_(gate.bias)
    with torch.no_grad():
        found = mono_state.Carrier(state, features, features, gate, scaled=True).carry(maps)
        assert found[0, 0].nonzero().tolist() == [[4, 6]] and not found[1].any()
        published = mono_state.Carrier(state, features, features, gate, scaled=False).carry(maps)
        assert not published.any()  # 8 cells: outside
        differ = mono_state.Carrier(state, features, -features, gate, scaled=True).carry(maps)
        assert not differ.any()


def test_corrected_directions_keep_their_own_cell_states_and_published_ones_share(small):
    corrected, images, intrinsics = small
    published = MultiMonoSf().eval()
    published.load_state_dict(corrected.state_dict())
    for student, shared in ((published, True), (corrected, False)):
        with torch.no_grad():
            _, state = student(*images[:1, :3].unbind(1), intrinsics[:1])
            flow, state = student(*images[:1, 1:].unbind(1), intrinsics[:1], state)
        assert all(one.equal(other) is shared for one, other in state.cells)
        assert flow.forward[0].isfinite().all()


def test_a_batch_gives_what_its_samples_give_alone_when_corrected(small):
    student, images, intrinsics = small
    with torch.no_grad():
        both = student.sequence(images, intrinsics)
        alone = [student.sequence(images[k : k + 1], intrinsics[k : k + 1]) for k in range(2)]
    for step, flow in enumerate(both):
        for name in MonoFlow._fields:
            expected = torch.cat([getattr(one[step], name)[0] for one in alone])
            torch.testing.assert_close(getattr(flow, name)[0], expected, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused(small):
    student, images, intrinsics = small
    with pytest.raises(ValueError, match='multiples of 32 px, not 60 x 64'):
        student.features(images[:, 0, :, :, :60])
    with pytest.raises(ValueError, match='at least 3 images'):
        student.sequence(images[:, :2], intrinsics)
    with torch.no_grad(), pytest.raises(ValueError, match=r'expected intrinsics \(2, 3, 3\), found \(1, 3, 3\)'):
        student(*images[:, :3].unbind(1), intrinsics[:1])
    state = mono_state.MonoState((), (), (), torch.zeros(2, 2, 32, 64), torch.zeros(2, 1, 32, 64))
    with torch.no_grad(), pytest.raises(ValueError, match='2 images of 64 x 32 px, the images are 2 of 64 x 64 px'):
        student(*images[:, :3].unbind(1), intrinsics, state)
