"""Slow: wrong versions of the method, made in memory by replacing text in a script; each must make the named test fail."""

import contextlib
import io
import multiprocessing
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_ranks
from conftest import ALL, ROOT

BOTH = ["dcgan", "wgan_gp"]  # plumbing is the same text everywhere: its mutants are tried in two scripts
D, L, C, W, S = ["dcgan"], ["lsgan"], ["wgan"], ["wgan_gp"], ["sngan"]
A, T, Q, Y, F = ["acgan"], ["cgan_text2img"], ["infogan"], ["cyclegan"], ["lightweight_gan"]
R = ["r3gan"]

# scripts, text, replacement, test
MUTANTS = [
    # losses
    (D, "(t * softplus(-scores)", "(t * softplus(scores)", "test_losses.py::test_values"),
    (D, "(1 - t) * softplus(scores)", "(1 - t) * softplus(-scores)", "test_losses.py::test_gradients_push_the_right_way"),
    (D, "cross_entropy(real, t_real) + cross_entropy(fake, t_fake)", "cross_entropy(real, t_fake) + cross_entropy(fake, t_real)", "test_losses.py::test_soft_labels_move_the_optimum"),
    (D, "return softplus(-fake).mean()", "return -softplus(fake).mean()", "test_losses.py::test_dcgan_does_not_saturate"),
    (D, "real, fake = D(x_real), D(x_fake.detach())", "fake, real = D(x_real), D(x_fake.detach())", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (D + L, "labels(real, args.real_label), labels(fake, args.fake_label)", "labels(real, args.fake_label), labels(fake, args.real_label)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (D + L, "torch.rand_like(scores)", "torch.rand(1)", "test_losses.py::test_labels"),
    (D, "range(args.g_steps - 1)", "range(args.g_steps)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (L, "((real - t_real) ** 2)", "((real + t_real) ** 2)", "test_losses.py::test_values"),
    (L, "((fake - t_fake) ** 2).mean() / 2", "((fake - t_fake) ** 2).mean()", "test_losses.py::test_lsgan_optimal_discriminator"),
    (L, "((fake - c) ** 2)", "((fake + c) ** 2)", "test_losses.py::test_gradients_push_the_right_way"),
    (L, "((fake - c) ** 2)", "(fake**2)", "test_losses.py::test_values"),
    (L, "g_loss(D(x_fake), args.g_label)", "g_loss(D(x_fake))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (S, "relu(1 - real).mean()", "relu(1 + real).mean()", "test_losses.py::test_values"),
    (S, "relu(1 + fake).mean()", "(1 + fake).mean()", "test_losses.py::test_hinge_is_flat_beyond_the_margin"),
    (S, "return -fake.mean()", "return relu(1 - fake).mean()", "test_losses.py::test_hinge_is_flat_beyond_the_margin"),
    (C, "return fake.mean() - real.mean()", "return real.mean() - fake.mean()", "test_losses.py::test_values"),
    (C, "return -fake.mean()", "return fake.mean()", "test_losses.py::test_gradients_push_the_right_way"),
    (W, "return fake.mean() - real.mean()", "return real.mean() - fake.mean()", "test_losses.py::test_values"),
    (W, "return -fake.mean()", "return fake.mean()", "test_losses.py::test_gradients_push_the_right_way"),
    # penalty
    (W, ".norm(dim=1) - 1) ** 2", ".norm(dim=1)) ** 2", "test_penalties.py::test_linear_critic"),
    (W, "gradient.flatten(1).norm(dim=1)", "gradient.norm(dim=1)", "test_penalties.py::test_linear_critic"),
    (W, "gradient.flatten(1).norm(dim=1)", "gradient.norm()", "test_penalties.py::test_linear_critic"),
    (W, "torch.ones_like(score)", "torch.ones_like(score) / len(score)", "test_penalties.py::test_linear_critic"),
    (W, "e * x_real + (1 - e) * x_fake)", "0 * e + x_real)", "test_penalties.py::test_quadratic_critic"),
    (W, "torch.rand(len(x_real), 1, 1, 1,", "torch.rand(1, 1, 1, 1,", "test_penalties.py::test_quadratic_critic"),
    (W, "torch.rand(len(x_real), 1, 1, 1,", "torch.rand(*x_real.shape,", "test_penalties.py::test_mixing_numbers_are_pinned"),
    (W, ", create_graph=True", "", "test_penalties.py::test_penalty_reaches_the_critic_and_not_the_generator"),
    (W, "        loss_D = loss + args.gp", "        with autocast(args):\n          loss_D = loss + args.gp", "test_penalties.py::test_train_step_keeps_the_penalty_out_of_autocast"),
    (W, "return ((gradient", "return 0.5 * ((gradient", "test_penalties.py::test_linear_game_has_the_known_solution"),
    (W, "loss + args.gp * gradient_penalty", "loss - args.gp * gradient_penalty", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (W, "loss + args.gp * gradient_penalty", "loss + gradient_penalty", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (W, "nn.Conv2d(c_in, c_out, 4, 2, 1), nn", "nn.Conv2d(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), nn", "test_penalties.py::test_critic_scores_one_image_at_a_time"),
    # the step
    (D + L, "D(x_fake.detach())", "D(x_fake)", "test_step.py::test_isolation"),
    (C, "        step(opt_D, loss_D)\n        clip_weights(D, args.clip)", "        clip_weights(D, args.clip)\n        step(opt_D, loss_D)", "test_step.py::test_wgan_critic_is_in_its_box_whenever_G_moves"),
    (C, "        clip_weights(D, args.clip)", "    clip_weights(D, args.clip)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (C, "        clip_weights(D, args.clip)", "        clip_weights(G, args.clip)", "test_step.py::test_wgan_critic_is_in_its_box_whenever_G_moves"),
    (C, "p.clamp_(-c, c)", "p.clamp_(max=c)", "test_step.py::test_wgan_linear_critic_ends_in_a_corner"),
    (C, "in D.parameters():", "in list(D.parameters())[1:]:", "test_step.py::test_wgan_critic_is_in_its_box_whenever_G_moves"),
    (C, "torch.optim.RMSprop(D", "torch.optim.Adam(D", "test_step.py::test_wgan_has_no_momentum"),
    (C, "-loss_D.detach()", "loss_D.detach()", "test_step.py::test_wasserstein_estimate"),
    (W, "-loss.detach()", "-loss_D.detach()", "test_step.py::test_wasserstein_estimate"),
    (C + S, "with torch.no_grad():  # G", "if True:  # G", "test_step.py::test_isolation"),
    (C + S, "range(args.n_critic)", "range(args.n_critic + 1)", "test_step.py::test_isolation"),
    (W, "with torch.no_grad():  # G", "if True:  # G", "test_penalties.py::test_train_step_keeps_the_penalty_out_of_autocast"),
    (BOTH, "D.requires_grad_(False)", "D.requires_grad_(True)", "test_step.py::test_isolation"),
    (W, "range(args.n_critic)", "range(args.n_critic - 1)", "test_step.py::test_isolation"),
    (W, "range(args.n_critic)", "range(args.n_critic + 1)", "test_step.py::test_isolation"),
    (W, "noise(len(x_real), args)", 'vars(args).setdefault("z", noise(len(x_real), args))', "test_step.py::test_noise_is_fresh_in_every_step"),
    (W, "        x_real = next(data)\n", "        x_real = next(data) if _ == 0 else x_real\n", "test_step.py::test_isolation"),
    (D, "loss_G = g_loss(D(x_fake))", "loss_G = g_loss(D(x_fake.detach() + 0 * x_fake))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    # attributes
    (A + Q, "softplus(-real).mean() + softplus(fake)", "softplus(real).mean() + softplus(-fake)", "test_losses.py::test_values"),
    (A, "return softplus(-fake).mean()", "return -softplus(fake).mean()", "test_losses.py::test_values"),
    (A, 'reduction="sum"', 'reduction="mean"', "test_conditions.py::test_class_loss"),
    (A, "heads, y.T, strict", "heads, y.T.flip(0), strict", "test_conditions.py::test_class_loss"),
    (A, "(real, logits), (fake, _)", "(real, _), (fake, logits)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "args.cls_weight * class_real", "class_real", "test_conditions.py::test_class_weight_0_is_the_plain_gan"),
    (A, "args.cls_weight_g * class_fake", "args.cls_weight * class_fake", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "D(x_fake if k == 0 else G(noise(len(x_real), args), y))", "D(G(noise(len(x_real), args), y))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "one_hot(k + 1, len(values) + 1)[:, 1:]", "one_hot(k.clamp(min=0), len(values))", "test_labels.py::test_encode_attributes"),
    (A, "places[0] if len(places) == 1 else -1", "places[0] if places else -1", "test_labels.py::test_encode_attributes"),
    (A + Q, "out[:, 0], out[:, 1:]", "out[:, 0], out[:, 1:].softmax(1)", "test_conditions.py::test_heads_are_logits"),
    (A, "[z, vectors(y, self.groups)]", "[z, 0 * vectors(y, self.groups)]", "test_conditions.py::test_condition_and_noise_both_matter"),
    (A + T, "[i // 8 * len(", "[i % 8 * len(", "test_training.py::test_files_of_a_run"),
    # captions
    (T, "t_real * softplus(-real) + (1 - t_real) * softplus(real)", "t_real * softplus(real) + (1 - t_real) * softplus(-real)", "test_conditions.py::test_gan_cls_losses"),
    (T, "(mask * softplus(wrong)).mean(1).sum()) / 2", "(mask * softplus(wrong)).mean(1).sum())", "test_conditions.py::test_gan_cls_losses"),
    (T, "(mask * softplus(wrong))", "softplus(wrong)", "test_conditions.py::test_gan_cls_losses"),
    (T, "(mask * softplus(wrong))", "(mask * softplus(-wrong))", "test_conditions.py::test_gan_cls_losses"),
    (T, "[D(x_real, t[other])]", "[D(x_real, t)]", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "[D(x_real[other], t)]", "[D(x_real[other], t[other])]", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "mask, args.real_label)", "mask)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, ".sigmoid().detach() - fake.sigmoid()", ".detach() - fake", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "order.roll(len(t) // 2)", "order.roll(1)", "test_conditions.py::test_derangement"),
    (T, "torch.randperm(len(t), device=t.device)[same]", "same", "test_conditions.py::test_derangement_is_not_the_next_in_the_alphabet"),
    (T, 'words + [" ".join(pair) for pair in itertools.pairwise(words)]', "words", "test_conditions.py::test_exchanged_colours_are_another_caption"),
    (T, "padding_idx=0", "padding_idx=None", "test_conditions.py::test_an_encoder_for_each_network"),
    (T, "t = self.text(t)[", "t = 0 * self.text(t)[", "test_conditions.py::test_exchanged_colours_are_another_caption"),
    (T, "range(args.sample)]", "range(args.sample - 1)]", "test_conditions.py::test_prompts"),
    # codes
    (Q, "(q[:, k:] - c[:, k:])", "(q[:, k:] + c[:, k:])", "test_conditions.py::test_codes"),
    (Q, "args.info_con * args.codes * numbers / 2", "args.info_con * numbers", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, " + info_loss(q, c, args)[0]", "", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, "+ information", "- information", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, "information, category, numbers = info_loss(q, c, args)", "information, category, numbers = info_loss(q, c.roll(1, 0), args)", "test_conditions.py::test_infogan_finds_a_code_that_is_plain_to_see"),
    (Q, "uniform_(-1, 1)], 1)", "uniform_(0, 1)], 1)", "test_conditions.py::test_codes"),
    (Q, "return ((fake - 1) ** 2).mean() / 2 if", "return (fake**2).mean() / 2 if", "test_losses.py::test_infogan_least_squares"),
    (Q, "[::8].repeat_interleave(8, 0)", "", "test_training.py::test_files_of_a_run"),
    (Q, "[z, c], 1", "[z, 0 * c], 1", "test_conditions.py::test_condition_and_noise_both_matter"),
    (A + Q, "D(x_fake.detach())", "D(x_fake)", "test_step.py::test_isolation"),
    (T, "D(x_fake.detach(), t)", "D(x_fake, t)", "test_step.py::test_isolation"),
    # cycles
    (Y, "g_loss(D_A(fake_a), args.gan_mode)", "g_loss(D_B(fake_a), args.gan_mode)", "test_cyclegan.py::test_step_equals_the_algorithm_by_hand"),
    (Y, "l1_loss(G_BA(fake_b), a)", "l1_loss(G_BA(fake_b), b)", "test_cyclegan.py::test_step_equals_the_algorithm_by_hand"),
    (Y, "G_BA(torch.cat([b, a])).chunk(2)", "G_BA(torch.cat([a, b])).chunk(2)", "test_cyclegan.py::test_step_equals_the_algorithm_by_hand"),
    (Y, "args.cycle * (cycle + args.identity * identity)", "args.cycle * cycle + args.identity * identity", "test_cyclegan.py::test_identity_weight_is_a_factor_of_the_cycle_weight"),
    (Y, "(((real - 1) ** 2).mean() + (fake**2).mean()) / 2", "((real - 1) ** 2).mean() + (fake**2).mean()", "test_cyclegan.py::test_losses_have_their_known_values_and_optima"),
    (Y, "softplus(-fake).mean()  # bce", "softplus(fake).mean()  # bce", "test_cyclegan.py::test_losses_have_their_known_values_and_optima"),
    (Y, "(softplus(-real).mean() + softplus(fake).mean()) / 2", "(softplus(real).mean() + softplus(-fake).mean()) / 2", "test_cyclegan.py::test_losses_have_their_known_values_and_optima"),
    (Y, "generator=coins) < 0.5", "generator=coins) < 0.9", "test_cyclegan.py::test_pool"),
    (Y, "self.images[k].clone(), image", "self.images[k].clone(), self.images[k].clone()", "test_cyclegan.py::test_pool"),
    (Y, "x.detach().float()", "x.float()", "test_cyclegan.py::test_pool"),
    (Y, "max(0, step - args.constant)", "step", "test_cyclegan.py::test_learning_rate_at_its_corners"),
    (Y, "min(1.0, max(0, step - args.constant) / args.decay)", "max(0, step - args.constant) / args.decay", "test_cyclegan.py::test_learning_rate_at_its_corners"),
    (Y, '"pool_A": pools["A"], ', "", "test_cyclegan.py::test_resume_is_bit_exact"),
    (Y, "lr * rate(i, args)", "lr * rate(i - start, args)", "test_cyclegan.py::test_rate_reaches_the_optimisers_and_a_resumed_run"),
    (Y, "(4 * w, 1)", "(4 * w, 2)", "test_cyclegan.py::test_receptive_field_is_70"),
    (Y, "D.requires_grad_(False)", "D.requires_grad_(True)", "test_cyclegan.py::test_gradients_of_one_step_stay_out_of_the_other"),
    (Y, "[:, :, :h, :w]  # mult", "  # mult", "test_cyclegan.py::test_any_size_comes_back"),
    (Y, '"BA." if args.reverse else "AB."', '"AB." if args.reverse else "BA."', "test_cyclegan.py::test_translation"),
    (Y, "scores_a, scores_b = D_A(torch.cat([a, old_a]))", "old_a = fake_a.detach(); scores_a, scores_b = D_A(torch.cat([a, old_a]))", "test_cyclegan.py::test_step_equals_the_algorithm_by_hand"),
    (Y, "            update_ema(", "            lambda *_: (", "test_cyclegan.py::test_average_of_the_generators"),
    (Y, 'G_ema["AB"](cut(next(data_A)', 'G_ema["BA"](cut(next(data_A)', "test_cyclegan.py::test_sampling_and_what_is_refused"),
    (Y, "% len(look)", "% 64", "test_cyclegan.py::test_domains"),
    (Y, '2 * args.seed + (side == "B")', "args.seed", "test_cyclegan.py::test_sides_have_orders_of_their_own"),
    (Y, "nn.ReflectionPad2d(3), nn.Conv2d(args.channels", "nn.ZeroPad2d(3), nn.Conv2d(args.channels", "test_cyclegan.py::test_weights_of_the_authors_load_and_do_the_same"),
    (Y, "nn.InstanceNorm2d(2 * c), nn.ReLU()", "nn.InstanceNorm2d(2 * c, affine=True), nn.ReLU()", "test_cyclegan.py::test_weights_of_the_authors_load_and_do_the_same"),
    # few images
    (F, "relu(1 - real).mean()", "relu(1 + real).mean()", "test_losses.py::test_values"),
    (F, "return -fake.mean()", "return fake.mean()", "test_losses.py::test_gradients_push_the_right_way"),
    (F, "augment(x_fake.detach(), args.augment)", "x_fake.detach()", "test_lightweight.py::test_D_sees_changed_images_only"),
    (F, "D(augment(x_fake, args.augment))", "D(x_fake)", "test_lightweight.py::test_D_sees_changed_images_only"),
    (F, "x_real = augment(next(data), args.augment)", "x_real = next(data)", "test_lightweight.py::test_D_sees_changed_images_only"),
    (F, "augment(x_fake.detach(), args.augment)", "augment(x_fake, args.augment)", "test_step.py::test_isolation"),
    (F, "[0]) + reconstruction", "[0])", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (F, "[0]) + reconstruction", "[0]) - reconstruction", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (F, "[(D.whole(small), x), (D.quarter(corner(large, i, j))", "[(D.whole(small.detach()), x), (D.quarter(corner(large.detach(), i, j))", "test_lightweight.py::test_reconstruction_reaches_D_and_comes_from_reals_only"),
    (F, "corner(x, i, j))]", "corner(x, j, i))]", "test_lightweight.py::test_reconstruction_is_zero_for_perfect_decoders"),
    (F, "x[:, :, i * half : (i + 1) * half, j * half : (j + 1) * half]", "x[:, :, j * half : (j + 1) * half, i * half : (i + 1) * half]", "test_lightweight.py::test_corner"),
    (F, "nn.Conv2d(c_large, c_large, 1), nn.Sigmoid()", "nn.Conv2d(c_large, c_large, 1), nn.Tanh()", "test_lightweight.py::test_excitation_weighs_channels"),
    (F, "large * self.net(small)", "large + self.net(small)", "test_lightweight.py::test_excitation_weighs_channels"),
    (F, "maps.append(self.skip[k](x, maps[k]) if", "maps.append(self.skip[k](x, maps[-1]) if", "test_lightweight.py::test_skips_and_decoders_fit_the_size"),
    (F, "up(c_in, c_out, conv)", "up(c_in, c_out)", "test_lightweight.py::test_spectral_norm_is_everywhere_in_D_and_nowhere_in_G"),
    (F, "spectral_norm(nn.Conv2d(*shape, bias=bias).apply(init_weights))", "spectral_norm(nn.Conv2d(*shape, bias=bias))", "test_networks.py::test_initialisation"),
    (F, "pad(x, [s // 8] * 4)", "pad(x, [s // 8] * 4, mode='circular')", "test_lightweight.py::test_translation"),
    (F, "(n, 2)).tolist()", "(1, 2)).tolist() * n", "test_lightweight.py::test_translation"),
    (F, ".abs() > s / 4", ".abs() > s / 2", "test_lightweight.py::test_cutout"),
    (F, "maps.append(self.skip[k](x, maps[k]) if k >= 0 else x)", "self.skip[max(k, 0)](x, maps[k]); maps.append(x)", "test_lightweight.py::test_skips_and_decoders_fit_the_size"),
    (F, "(self.main(x) + self.side(x)) / 2", "self.main(x)", "test_lightweight.py::test_blocks"),
    (F, "nn.GLU(1))", "nn.MaxPool3d((2, 1, 1)))", "test_lightweight.py::test_blocks"),
    (F, "min(2**level, 16)", "min(2**level, 8)", "test_lightweight.py::test_widths"),
    (F, "uniform(0, 2, 1, 1, 1)", "uniform(0, 1, 1, 1, 1)", "test_lightweight.py::test_colour"),
    (F, "x = mean + (x - mean) *", "x = mean.detach() + (x - mean) *", "test_lightweight.py::test_gradients_pass_the_changes"),
    # pairs and penalties
    (R, "softplus(-(real - fake))", "softplus(-(fake - real))", "test_r3gan.py::test_losses"),
    (R, "softplus(-(fake - real))", "-softplus(fake - real)", "test_r3gan.py::test_losses"),
    (R, "softplus(-(real - fake))", "softplus(-(real - fake.mean()))", "test_r3gan.py::test_losses"),
    (R, "softplus(-(real - fake))", "(softplus(-real) + softplus(fake))", "test_r3gan.py::test_best_scores_on_a_finite_set"),
    (R, "gradient.square().sum((1, 2, 3)).mean()", "gradient.flatten(1).norm(dim=1).mean()", "test_r3gan.py::test_penalty_of_a_linear_D"),
    (R, "gradient.square().sum((1, 2, 3)).mean()", "gradient.square().sum()", "test_r3gan.py::test_penalty_of_a_linear_D"),
    (R, ", create_graph=True", "", "test_r3gan.py::test_penalty_of_a_linear_D"),
    (R, "gamma / 2 * (r1 + r2)", "gamma * (r1 + r2)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, "gamma / 2 * (r1 + r2)", "gamma / 2 * r1", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, "zero_centred_penalty(y, fake)", "zero_centred_penalty(x, real)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, "g_loss(D(x_real), D(x_fake))", "g_loss(D(x_fake), D(x_real))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, "        nn.init.zeros_(module.net[4].weight)", "        pass", "test_r3gan.py::test_blocks_start_as_the_identity"),
    (R, "module.weight[0].numel() ** -0.5", "0.02", "test_r3gan.py::test_variance_is_kept_through_depth"),
    (R, "depth**-0.25", "depth**-0.5", "test_r3gan.py::test_variance_is_kept_through_depth"),
    (R, "scale_factor=2, mode=\"bilinear\"", "scale_factor=2, mode=\"nearest\"", "test_r3gan.py::test_resampling"),
    (R, "mode=\"bilinear\", antialias=True", "mode=\"bilinear\"", "test_r3gan.py::test_resampling"),
    (R, ' * nn.init.calculate_gain("leaky_relu", 0.2)', "", "test_r3gan.py::test_variance_is_kept_through_depth"),
    (R, "(c, blocks), *larger = stages(args)[::-1]", "(c, blocks), *larger = [(c, n) for (c, _), (_, n) in zip(stages(args)[::-1], stages(args))]", "test_r3gan.py::test_stages"),
    (R, "args.penalty_every * annealed", "annealed", "test_r3gan.py::test_schedules"),
    (R, "annealed(lr, lr / 4, i, args)", "annealed(lr, lr / 4, i - start, args)", "test_r3gan.py::test_schedules"),
    (R, "    real, fake = D(x), D(y)  #", "    with autocast(args):\n        real, fake = D(x), D(y)  #", "test_r3gan.py::test_penalties_are_in_float32"),
    (R, "x.device.type, enabled=False", "x.device.type, enabled=True", "test_r3gan.py::test_scores_are_not_rounded_to_bfloat16"),
    # networks
    (D + L, "nn.Dropout(args.dropout), nn.Conv2d(w[-1], 1, base)", "nn.Conv2d(w[-1], 1, base), nn.Dropout(args.dropout)", "test_networks.py::test_dropout_is_before_the_last_convolution_of_D_only"),
    (S, "layers += [conv(w[-1], 1, base)", "layers += [nn.Conv2d(w[-1], 1, base)", "test_networks.py::test_sngan_normalises_every_layer_of_D_and_none_of_G"),
    (S, "spectral_norm(nn.Conv2d(*shape).apply(init_weights))", "spectral_norm(nn.Conv2d(*shape))", "test_networks.py::test_initialisation"),
    (S, "layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1)", "layers += [spectral_norm(nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1))", "test_networks.py::test_sngan_normalises_every_layer_of_D_and_none_of_G"),
    (S, "layers += [conv(c_in, c_out, 4, 2, 1), nn", "layers += [conv(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), nn", "test_networks.py::test_layers_are_the_paper_s"),
    (BOTH, "nn.init.normal_(module.weight, 1.0, 0.02)", "nn.init.normal_(module.weight, 0.0, 0.02)", "test_networks.py::test_initialisation"),
    (BOTH, "nn.init.normal_(module.weight, 0.0, 0.02)", "nn.init.normal_(module.weight, 0.0, 0.05)", "test_networks.py::test_initialisation"),
    (BOTH, ", nn.Tanh()]", "]", "test_networks.py::test_output_range"),
    (BOTH, "nn.Flatten(0)]", "nn.Flatten(0), nn.Sigmoid()]", "test_networks.py::test_scores_are_unbounded_float32"),
    (BOTH, "return self.net(x).float()", "return self.net(x)", "test_networks.py::test_scores_are_unbounded_float32"),
    (BOTH, "min(2**level, 8)", "2**level", "test_networks.py::test_widths"),
    # plumbing
    (BOTH, "average.lerp_(p, 1 - decay)", "average.lerp_(p, decay)", "test_step.py::test_ema_closed_form"),
    (BOTH, "        average.copy_(b)", "        pass", "test_step.py::test_ema_closed_form"),
    (BOTH, "min(args.ema, (1 + i) / (10 + i))", "args.ema", "test_step.py::test_ema_warm_up"),
    (BOTH, "min(args.ema, (1 + i) / (10 + i))", "min(args.ema, 1 / (10 + i))", "test_step.py::test_ema_reaches_its_flag"),
    (BOTH, "p.grad = torch.zeros_like(p)", "pass", "test_step.py::test_a_parameter_without_gradient_counts_as_zero"),
    (BOTH, "lambda: G_ema(fixed_z)", "lambda: G(fixed_z)", "test_training.py::test_observer_effect"),
    (BOTH, "args.seed} {i} {rank}", "args.seed} {start} {rank}", "test_training.py::test_determinism"),
    (BOTH, 'zlib.crc32(f"{args.seed} {i} {rank}".encode())', "(args.seed << 40) + (i << 8) + rank", "test_training.py::test_determinism"),
    (BOTH, "            state[name].load_state_dict(values)", '            if name != "opt_D":\n                state[name].load_state_dict(values)', "test_training.py::test_resume_is_bit_exact"),
    (BOTH, "            state[name].load_state_dict(values)", '            if name != "data":\n                state[name].load_state_dict(values)', "test_training.py::test_resume_is_bit_exact"),
    (BOTH, "            state[name].load_state_dict(values)", '            if name != "G_ema":\n                state[name].load_state_dict(values)', "test_training.py::test_resume_is_bit_exact"),
    (BOTH, 'start = saved["step"]', 'start = saved["step"] + 1', "test_training.py::test_resume_is_bit_exact"),
]  # fmt: skip

# What surrounds the method. scripts or files, text, replacement, test; for common, compare and faces the script that the test runs.
SURROUNDING = [
    # modes
    (D + S + T + F + Y, "copy.deepcopy(G).eval()", "copy.deepcopy(G.eval())", "test_main.py::test_modes_of_the_networks"),
    (C, "copy.deepcopy(G).eval()", "copy.deepcopy(G)", "test_main.py::test_modes_of_the_networks"),
    (A, "copy.deepcopy(G).eval().requires_grad_(False)", "copy.deepcopy(G).eval()", "test_main.py::test_modes_of_the_networks"),
    (Q, "lambda: G_ema(fixed_z, fixed_c)", "lambda: G_ema.train()(fixed_z, fixed_c)", "test_main.py::test_modes_of_the_networks"),
    (D, "else torch.channels_last", "else torch.contiguous_format", "test_main.py::test_modes_of_the_networks"),
    # resuming with other flags
    (D + S + L + T + Y, 'values["param_groups"] = state[name].state_dict()["param_groups"]', "pass", "test_main.py::test_rates_and_betas_of_this_start_win"),
    (R + W, 'values["param_groups"] = state[name].state_dict()["param_groups"]', "pass", "test_main.py::test_kernels_are_those_of_this_device"),
    (Q, '"act", "categories", "codes")', '"act", "categories")', "test_main.py::test_flags_that_change_the_networks_are_refused"),
    (R, '"width", "blocks")', '"width")', "test_main.py::test_flags_that_change_the_networks_are_refused"),
    (Y, '("channels", "width", "blocks")', '("channels", "width")', "test_main.py::test_flags_that_change_the_networks_are_refused"),
    (A, "or (args.resume and groups != args.groups)", "", "test_cli.py::test_labels_that_changed_since_the_checkpoint"),
    (T, "if args.resume and text != (args.words, args.text_dim):", "if False:", "test_cli.py::test_labels_that_changed_since_the_checkpoint"),
    # samples and the labels beside them
    (D + C + S + F + R, "lambda: G_ema(noise(args.batch, args))", "lambda: G_ema(torch.randn(args.batch, args.z_dim))", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A + T, "lambda: G_ema(noise(args.batch, args), next(parts))", "lambda: G_ema(torch.randn(args.batch, args.z_dim), next(parts))", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (L + A, 'G_ema.train(args.sample_mode == "batch")', "pass", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (W, 'G_ema.train(args.sample_mode == "batch")', 'G_ema.train(args.sample_mode == "eval")', "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (D, '["state"]["G_ema"])', '["state"]["G"])', "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (S, "read_checkpoint(args.checkpoint, args.script)[\"state\"][\"G_ema\"]", "read_checkpoint(f\"{args.out}/last.pt\", args.script)[\"state\"][\"G_ema\"]", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (Q, "describe(row, args) for row in c.tolist()", "describe(row, args) for row in c.roll(1, 0).tolist()", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (Q, "enumerate(c[args.categories :], 1)", "enumerate(c[args.categories - 1 :], 1)", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A, "decode(row, args.groups) for row in y.tolist()", "decode(row, args.groups) for row in y.roll(1, 0).tolist()", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A, "y[torch.arange(count) % len(y)]", "y.flip(0)[torch.arange(count) % len(y)]", "test_sampling.py::test_sample_labels_in_turn"),
    (A, "torch.rand(count, len(sizes), generator=own) * sizes).long()", "torch.rand(count, len(sizes), generator=own) * sizes).long().sort(0).values", "test_sampling.py::test_the_first_samples_are_of_all_kinds"),
    (T, 'encode([r["caption"] for r in rows], args) if rows', 'encode(sorted(r["caption"] for r in rows), args) if rows', "test_sampling.py::test_each_prompt_s_files_show_it"),
    (T, "sorted({*captions}, key=lambda c: zlib.crc32(c.encode()))", "sorted({*captions})", "test_sampling.py::test_the_first_samples_are_of_all_kinds"),
    (T, "sorted({*captions}, key=lambda c: zlib.crc32(c.encode()))", "sorted(captions, key=lambda c: zlib.crc32(c.encode()))", "test_sampling.py::test_captions_of_the_training_come_in_turn"),
    (T, "asked += [line.partition", "asked = [line.partition", "test_sampling.py::test_prompts_of_both_kinds"),
    # ends of networks
    (R, "nn.Conv2d(c, args.channels, 1, bias=False))", "nn.Conv2d(c, args.channels, 1, bias=False), nn.Tanh())", "test_networks.py::test_G_of_r3gan_is_not_bounded"),
    (R, "nn.Conv2d(c, args.channels, 1, bias=False))", "nn.Conv2d(c, args.channels, 1, bias=False), nn.Hardtanh())", "test_networks.py::test_G_of_r3gan_is_not_bounded"),
    # more than one machine
    (D + Y, "grad.view_as(p) / dist.get_world_size()", 'grad.view_as(p) / int(os.environ["LOCAL_WORLD_SIZE"])', "test_main.py::test_gradients_are_divided_by_all_processes"),
    (D + R, "if args.batch % world:", "if args.batch < world:", "test_main.py::test_setup_on_cpus"),
    (D, "f\"cuda:{os.environ.get('LOCAL_RANK', 0)}\"", "f\"cuda:{os.environ.get('RANK', 0)}\"", "test_main.py::test_setup_on_many_machines_with_cuda"),
    (W, 'int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))', 'int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (S, 'int(os.environ.get("WORLD_SIZE", 1))', 'int(os.environ.get("LOCAL_WORLD_SIZE", 1))', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, '"nccl" if "cuda" in args.device else "gloo"', '"gloo"', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, " and torch.cuda.is_bf16_supported(including_emulation=False)", "", "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, " and world == 1", "", "test_main.py::test_mps_is_for_one_process"),
    # what is logged
    (D + S, '"loss_D": loss_D.detach(), "loss_G": loss_G.detach()', '"loss_D": loss_G.detach(), "loss_G": loss_D.detach()', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, '"class_real": class_real, "class_fake": class_fake', '"class_real": class_fake, "class_fake": class_real', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, '"category": category, "numbers": numbers', '"category": category, "numbers": information', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, '"r1": r1, "r2": r2', '"r1": r2, "r2": r1', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (R, "step(opt_D, loss_D + gamma / 2 * (r1 + r2))", "loss_D = loss_D + gamma / 2 * (r1 + r2)\n    step(opt_D, loss_D)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (F, '"reconstruction": reconstruction', '"reconstruction": 2 * reconstruction', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Y, '"cycle": cycle}', '"cycle": args.cycle * cycle}', "test_cyclegan.py::test_step_equals_the_algorithm_by_hand"),
    (D, "            update_ema(G_ema, G, min(args.ema, (1 + i) / (10 + i)))  # warm-up: forget the random start soon\n            run.log(metrics)\n", "            run.log(metrics)\n            update_ema(G_ema, G, min(args.ema, (1 + i) / (10 + i)))\n", "test_logs.py::test_log_and_grid_see_the_same_average"),
]  # fmt: skip

M, P = "common", "compare"
# file, text, replacement, test, and the script that the test runs
OF_FILES = [
    # processes and flags
    (M, 'while int(os.environ.get("LOCAL_RANK", 0))', 'while int(os.environ.get("RANK", 0))', "test_main.py::test_each_machine_decodes_for_itself"),
    (M, 'while int(os.environ.get("LOCAL_RANK", 0)) and not index.exists()', "while False", "test_main.py::test_other_processes_of_a_machine_wait_for_its_first"),
    (M, '    if int(os.environ.get("RANK", 0)):\n        return\n    folder = Path(args.out)', '    if int(os.environ.get("LOCAL_RANK", 0)):\n        return\n    folder = Path(args.out)', "test_main.py::test_only_the_first_process_of_all_speaks_and_writes"),
    *((M, f'"{name}", ', "", "test_main.py::test_each_flag_comes_from_where_it_should") for name in ("out", "cache", "resume")),
    (M, '"cache", "device", "resume"', '"cache", "resume"', "test_main.py::test_a_checkpoint_of_a_card_is_resumed_on_a_cpu"),
    (M, '"checkpoint", "sample", "sample_mode"}', '"checkpoint", "sample", "sample_mode", "flip"}', "test_main.py::test_each_flag_comes_from_where_it_should"),
    (M, 'if args.resume and checkpoint["step"] >= args.steps:', 'if args.resume and checkpoint["step"] > args.steps:', "test_cli.py::test_what_a_run_refuses_at_its_start"),
    (M, '(out / "last.pt").exists() or (out / "log.csv").exists()', '(out / "last.pt").exists()', "test_cli.py::test_what_a_run_refuses_at_its_start"),
    (M, "if not low <= value <= high:", "if not low <= value:", "test_cli.py::test_bounds_of_every_flag"),
    (M, "if not low <= value <= high:", "if not low < value <= high:", "test_cli.py::test_bounds_of_every_flag"),
    # the cache
    (M, "(s.st_size, s.st_mtime_ns)", "s.st_size", "test_common.py::test_the_cache_s_key_part_by_part"),
    (M, "(s.st_size, s.st_mtime_ns)", "s.st_mtime_ns", "test_common.py::test_the_cache_s_key_part_by_part"),
    (M, "repr([(name, s and", "repr([(s and", "test_common.py::test_the_cache_s_key_part_by_part"),
    (M, 'f"{slot}-{args.size}-{args.channels}-v1-{key}"', 'f"{slot}-{args.size}-v1-{key}"', "test_common.py::test_each_folder_size_and_number_of_channels_has_a_cache_of_its_own"),
    (M, 'f"{slot}-{args.size}-{args.channels}-v1-{key}"', 'f"{args.size}-{args.channels}-v1-{key}"', "test_common.py::test_each_folder_size_and_number_of_channels_has_a_cache_of_its_own"),
    (M, "os.path.realpath(args.path), Path(args.path)", "args.path, Path(args.path)", "test_common.py::test_each_folder_size_and_number_of_channels_has_a_cache_of_its_own"),
    (M, "f\"{FACES} {Path(faces.__file__).read_text(encoding='utf-8')}\"", 'f"{FACES}"', "test_common.py::test_the_built_in_cache_follows_the_painter"),
    (M, "                        bad[name] = image\n                    else:\n                        good.append(name)\n", "                        bad[name] = image\n                        good.append(name)\n                    else:\n                        good.append(name)\n", "test_common.py::test_unreadable_files_do_not_shift_the_others"),
    (M, "    return sorted(names)\n", "    return names[::-1]\n", "test_common.py::test_order_of_the_images_is_that_of_their_names"),
    # decoding
    (M, "2 * size)", "size)", "test_decoding.py::test_large_jpegs_are_as_sharp_as_if_they_were_decoded_whole"),
    (M, "if image.has_transparency_data:", 'if image.mode in ("RGBA", "LA", "P"):', "test_decoding.py::test_every_pixel_of_every_mode"),
    (M, 'image.size, "white"', 'image.size, "black"', "test_decoding.py::test_every_pixel_of_every_mode"),
    (M, ".astype(np.int64) >> 8)", ".astype(np.int64) >> 7)", "test_decoding.py::test_every_pixel_of_every_mode"),
    (M, "image = ImageOps.exif_transpose(image)", "image = image.copy()", "test_decoding.py::test_orientations_and_crops"),
    (M, "ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS), channels", "ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS, centering=(0.5, 0.4)), channels", "test_decoding.py::test_orientations_and_crops"),
    (M, "(size, size), Image.Resampling.LANCZOS), channels", "(size, size), Image.Resampling.BICUBIC), channels", "test_decoding.py::test_resized_pixels"),
    (M, "transpose(2, 0, 1)", "transpose(2, 1, 0)", "test_decoding.py::test_every_pixel_of_every_mode"),
    # logs and pictures
    (M, ".mean().item() / self.real_distance", ".mean().item()", "test_logs.py::test_diversity_is_the_ratio_of_mean_distances"),
    (M, "(self.data.position - self.first) * self.args.batch", "(self.step - self.start) * self.args.batch", "test_logs.py::test_speed_and_epoch"),
    (M, "(self.data.position - self.first) * self.args.batch", "self.data.position * self.args.batch", "test_logs.py::test_speed_and_epoch"),
    (M, "self.data.position * self.args.batch / len(self.data.rows)", "self.data.position / len(self.data.rows)", "test_logs.py::test_speed_and_epoch"),
    (M, "append_images\": frames[1:]", "append_images\": frames[:0:-1]", "test_logs.py::test_progress_gif_shows_the_grids_in_their_order"),
    (M, "key=lambda f: int(f.stem))", "key=lambda f: f.stem)", "test_logs.py::test_progress_gif_shows_the_grids_in_their_order"),
    (M, "len(files) & (len(files) - 1) == 0", "len(files) % 2 == 0", "test_logs.py::test_progress_gif_shows_the_grids_in_their_order"),
    (M, "frame.thumbnail((600, 600))", "frame.thumbnail((60, 60))", "test_logs.py::test_large_grids_are_shrunk_in_the_gif"),
    (M, "rows = self.data.rows[np.random", "rows = np.arange(len(self.data.images))[np.random", "test_logs.py::test_real_png_shows_what_is_trained_on", "acgan"),
    # files
    (M, "            os.fsync(file.fileno())\n        os.replace", "        os.replace", "test_files.py::test_a_file_is_on_disk_before_it_takes_its_place"),
    (M, "except (OSError, RuntimeError) as error:", "except OSError as error:", "test_files.py::test_a_write_that_fails_leaves_the_old_file"),
    (M, '[self.out / f"checkpoints/{self.step:06d}.pt"] * bool(self.args.keep) + [self.out / "last.pt"]', '[self.out / "last.pt"] + [self.out / f"checkpoints/{self.step:06d}.pt"] * bool(self.args.keep)', "test_files.py::test_last_pt_is_written_last_but_for_the_gif"),
    (M, '[: -self.args.keep or None]', "[: -self.args.keep]", "test_main.py::test_keep"),
    (M, 'int(row.split(",")[0]) <= self.start', 'int(row.split(",")[0]) < self.start', "test_files.py::test_what_a_power_cut_tore_is_mended_at_the_next_start"),
    (M, "grid = self.start - bool(self.start % self.args.save_every)", "grid = self.start", "test_files.py::test_what_a_power_cut_tore_is_mended_at_the_next_start"),
    (M, "self.step % 10 == 0", "self.step % 10 == self.rank", "test_files.py::test_processes_agree_on_when_to_leave"),
    (M, "dist.ReduceOp.MAX", "dist.ReduceOp.MIN", "test_files.py::test_processes_agree_on_when_to_leave"),
    (M, "if self.stop and number == signal.SIGINT:", "if self.stop:", "test_files.py::test_a_second_ctrl_c_ends_at_once"),
    (M, "weight.is_floating_point() and not weight.isfinite().all()", "weight.is_floating_point() and weight.isnan().any()", "test_files.py::test_a_weight_that_is_not_finite_is_never_saved"),
    (M, "    for old in [*folder.glob(\"*.png\"), *folder.glob(\"labels.csv\")]:", "    for old in folder.glob(\"*.png\"):", "test_sampling.py::test_samples_without_labels_leave_no_table"),
    (M, "labels[len(rows)] if labels", "labels[len(rows) - 1] if labels", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say", "acgan"),
    # compare.py
    (P, "order[: args.count], order[args.count : 2 * args.count]", "order[: args.count], order[args.count // 2 : args.count // 2 + args.count]", "test_compare.py::test_reference_held_out_and_samples_are_what_they_are_said_to_be"),
    (P, "np.random.default_rng(1).permutation(len(images))", "np.random.default_rng(0).permutation(len(images))", "test_compare.py::test_reference_held_out_and_samples_are_what_they_are_said_to_be"),
    (P, "np.arange(len(images)) if name in args.runs else shuffled", "shuffled", "test_compare.py::test_reference_held_out_and_samples_are_what_they_are_said_to_be"),
    (P, "rows.get(file, {}).get(key) for file in files", "row.get(key) for row in list(rows.values())[: len(files)]", "test_compare.py::test_labels_belong_to_the_image_that_their_row_names"),
    (P, '| {"nearest": row["nearest"] / floor}', "", "test_compare.py::test_nearest_is_divided_by_that_of_the_reals"),
    (P, "fake: Tensor, k: int = 3)", "fake: Tensor, k: int = 5)", "test_compare.py::test_radii_are_those_of_the_third_nearest"),
    (P, "(seen[name] == wanted[name]).mean()", '(seen[name] == wanted[name])[seen["readable"]].mean()', "test_compare.py::test_obedience_and_counts_by_a_reader_that_is_known"),
    (P, "[grids[name][:16], beside], 1", "[beside, grids[name][:16]], 1", "test_compare.py::test_nearest_png_shows_each_sample_beside_its_nearest_real"),
    (P, "len(images) < args.count or min(", "len(images) < args.count or max(", "test_compare.py::test_samples_are_reused_only_if_they_are_newer"),
]  # fmt: skip

RANK_MUTANTS = [
    (BOTH, '.copy_(grad.view_as(p) / dist.get_world_size())', ".copy_(grad.view_as(p))", "test_ranks.py::test_gradients_are_those_of_one_process"),
    (BOTH, "{i} {rank}", "{i}", "test_ranks.py::test_weights_are_equal_and_noise_differs"),
    (BOTH, "        dist.all_reduce(flat)\n", "", "test_ranks.py::test_weights_are_equal_and_noise_differs"),
]  # fmt: skip

# file, text, replacement, test, the script whose parameters the test takes
CASES = [(script, *mutant[1:], script) for mutant in MUTANTS + SURROUNDING for script in mutant[0]]
CASES += [(*mutant[:4], mutant[4] if len(mutant) > 4 else "dcgan") for mutant in OF_FILES]


class Only:
    """A pytest plugin that leaves the tests of one name, of their parameters those of one script."""

    def __init__(self, script: str, name: str):
        self.script, self.name = script, name

    def pytest_collection_modifyitems(self, items):
        def wanted(item) -> bool:
            values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
            values += [part for value in values if isinstance(value, tuple) for part in value]
            scripts = {str(value).split(" ")[0] for value in values} & set(ALL)
            return item.originalname == self.name and scripts <= {self.script}

        items[:] = [item for item in items if wanted(item)]


def run_mutant(file: str, text: str, test: str, script: str, results):
    """In a child: put the mutated file where imports find it, and run the one test."""
    mutant = types.ModuleType(file)
    mutant.__file__ = str(ROOT / f"{file}.py")
    exec(compile(text, f"{file} (mutant)", "exec"), mutant.__dict__)
    sys.modules[file] = mutant
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        path, name = test.split("::")
        flags = ["-q", "-x", "-p", "no:cacheprovider", str(ROOT / "tests" / path)]
        code = pytest.main(flags, plugins=[Only(script, name)])
    results.put((int(code), output.getvalue()[-1500:]))


def outcome(file: str, text: str, test: str, script: str) -> tuple[int, str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "common", "pytest"])
    results = context.Queue()
    child = context.Process(target=run_mutant, args=(file, text, test, script, results))
    child.start()
    try:
        return results.get(timeout=240)
    finally:
        child.kill()
        child.join()


def source(file: str) -> str:
    return (ROOT / f"{file}.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes(request):
    """What became of every selected case, as futures: two children at a time, in the order of the tests."""
    cases = [
        item.callspec.params["case"] for item in request.session.items if "case" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {case: pool.submit(outcome, case[0], text_of(case), case[3], case[4]) for case in cases}
        pool.shutdown(cancel_futures=True)


def text_of(case: tuple) -> str:
    """The wrong version; without a replacement the file as it is."""
    file, old, new = case[:3]
    return source(file).replace(old, new) if new is not None else source(file)


def test_the_table_is_large_and_up_to_date():
    """Catches mutants whose text is no longer in the script, and so would test nothing."""
    assert len(MUTANTS) >= 20 and len(CASES) == len(set(CASES))
    assert sum(len(mutant[0]) for mutant in SURROUNDING) + len(OF_FILES) >= 78
    for file, old, new, test, *_ in [*CASES, *((script, *m[1:]) for m in RANK_MUTANTS for script in m[0])]:
        assert source(file).count(old) >= 1, (file, old)
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), test
        assert old != new


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3].split('::')[1]}")
def test_mutant_is_killed(case, outcomes):
    code, output = outcomes[case].result()
    assert code == 1, f"survived, or the test did not run (exit {code}):\n{case}\n{output}"


UNCHANGED = sorted(
    {(file if file == script else script, "", None, test, script) for file, _, _, test, script in CASES}, key=str
)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNCHANGED, ids=lambda case: f"{case[0]}-{case[3].split('::')[1]}")
def test_the_unchanged_script_passes(case, outcomes):
    """Catches a test that fails whatever the script is."""
    code, output = outcomes[case].result()
    assert code == 0, f"{case}\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize(("scripts", "old", "new", "test"), RANK_MUTANTS)
def test_rank_mutant_is_killed(scripts, old, new, test, tmp_path, folder):
    """The same for two processes: here the mutants are files in a folder that comes first on the path."""
    (tmp_path / "mutants").mkdir()
    (tmp_path / "out").mkdir()
    for script in scripts:
        text = (ROOT / f"{script}.py").read_text().replace(old, new)
        (tmp_path / f"mutants/{script}.py").write_text(text)
    launch = test_ranks.start(tmp_path / "out", folder, first=tmp_path / "mutants")
    for script in scripts:
        with pytest.raises(AssertionError):
            getattr(test_ranks, test.split("::")[1])(launch, script)
