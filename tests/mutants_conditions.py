"""Wrong versions of acgan.py, cgan_text2img.py and infogan.py: see test_mutants.py."""

A = ["acgan"]
T = ["cgan_text2img"]
Q = ["infogan"]

# scripts, text, replacement, the test that must fail
MUTANTS = [
    # attributes
    (A + Q, "softplus(-real).mean() + softplus(fake)", "softplus(real).mean() + softplus(-fake)", "test_losses.py::test_values"),
    (A, "return softplus(-fake).mean()", "return -softplus(fake).mean()", "test_losses.py::test_values"),
    (A, 'reduction="sum"', 'reduction="mean"', "test_conditions.py::test_class_loss"),
    (A, "heads, y.T, strict", "heads, y.T.flip(0), strict", "test_conditions.py::test_class_loss"),
    (A, "real, logits = D(x_real)\n        fake, _ =", "real, _ = D(x_real)\n        fake, logits =", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "args.cls_weight * class_real", "class_real", "test_conditions.py::test_class_weight_0_is_the_plain_gan"),
    (A, "args.cls_weight_g * class_fake", "args.cls_weight * class_fake", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "if k > 0:", "if True:", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (A, "one_hot(k + 1, len(values) + 1)[:, 1:]", "one_hot(k.clamp(min=0), len(values))", "test_labels.py::test_encode_attributes"),
    (A, "if len(given) == 1 else -1", "if given else -1", "test_labels.py::test_encode_attributes"),
    (A, "out[:, 0], out[:, 1:]", "out[:, 0], out[:, 1:].softmax(1)", "test_conditions.py::test_heads_are_logits"),
    (Q, "self.q(x).flatten(1)", "self.q(x).flatten(1).softmax(1)", "test_conditions.py::test_heads_are_logits"),
    (Q, "self.q = nn.Conv2d(", "self.q = conv(", "test_networks.py::test_every_layer_of_D_is_normalised_and_none_of_G"),
    (Q, "self.score = conv(", "self.score = nn.Conv2d(", "test_networks.py::test_every_layer_of_D_is_normalised_and_none_of_G"),
    (Q, "layers += [conv(c_in", "layers += [nn.Conv2d(c_in", "test_networks.py::test_every_layer_of_D_is_normalised_and_none_of_G"),
    (Q, "spectral_norm(SNConv2d(*shape).apply(init_weights))", "spectral_norm(SNConv2d(*shape))", "test_networks.py::test_initialisation"),
    (A, "[z, vectors(y, self.groups)]", "[z, 0 * vectors(y, self.groups)]", "test_conditions.py::test_condition_and_noise_both_matter"),
    (A + T, "].repeat_interleave(8, 0)", "].repeat(8, 1)", "test_training.py::test_files_of_a_run"),
    # captions
    (T, "t_real * softplus(-real) + (1 - t_real) * softplus(real)", "t_real * softplus(real) + (1 - t_real) * softplus(-real)", "test_conditions.py::test_gan_cls_losses"),
    (T, "(generated + mismatched) / 2", "(generated + mismatched)", "test_conditions.py::test_gan_cls_losses"),
    (T, "(mask * softplus(wrong))", "softplus(wrong)", "test_conditions.py::test_gan_cls_losses"),
    (T, "(mask * softplus(wrong))", "(mask * softplus(-wrong))", "test_conditions.py::test_gan_cls_losses"),
    (T, "[D(x_real, t[other])]", "[D(x_real, t)]", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "wrong.append(D(x_real[other], t))", "wrong.append(D(x_real[other], t[other]))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "mask, args.real_label)", "mask)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, ".sigmoid().detach() - fake.sigmoid()", ".detach() - fake", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (T, "order.roll(len(t) // 2)", "order.roll(1)", "test_conditions.py::test_derangement"),
    (T, "torch.randperm(len(t), device=t.device)[caption]", "caption", "test_conditions.py::test_derangement_is_not_the_next_in_the_alphabet"),
    (T, "return words + pairs", "return words", "test_conditions.py::test_exchanged_colours_are_another_caption"),
    (T, "padding_idx=0", "padding_idx=None", "test_conditions.py::test_an_encoder_for_each_network"),
    (T, "t = self.text(t)[", "t = 0 * self.text(t)[", "test_conditions.py::test_exchanged_colours_are_another_caption"),
    (T, "range(1, each + 1)", "range(1, each)", "test_conditions.py::test_prompts"),
    # codes
    (Q, "(q[:, k:] - c[:, k:])", "(q[:, k:] + c[:, k:])", "test_conditions.py::test_codes"),
    (Q, "args.info_con * args.codes * numbers / 2", "args.info_con * numbers", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, "d_loss(real, fake, args.adv) + information", "d_loss(real, fake, args.adv)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, "g_loss(fake, args.adv) + information", "g_loss(fake, args.adv) - information", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, "information, category, numbers = info_loss(q, c, args)", "information, category, numbers = info_loss(q, c.roll(1, 0), args)", "test_conditions.py::test_infogan_finds_a_code_that_is_plain_to_see"),
    (Q, "args.codes, device=args.device).uniform_(-1, 1)", "args.codes, device=args.device).uniform_(0, 1)", "test_conditions.py::test_codes"),
    (Q, "return ((fake - 1) ** 2).mean() / 2", "return (fake**2).mean() / 2", "test_losses.py::test_infogan_least_squares"),
    (Q, "[::8].repeat_interleave(8, 0)", "", "test_training.py::test_files_of_a_run"),
    (Q, "[z, c], 1", "[z, 0 * c], 1", "test_conditions.py::test_condition_and_noise_both_matter"),
    (A + Q, "D(x_fake.detach())", "D(x_fake)", "test_step.py::test_isolation"),
    (T, "D(x_fake.detach(), t)", "D(x_fake, t)", "test_step.py::test_isolation"),
    # modes
    (T, "copy.deepcopy(G).eval()", "copy.deepcopy(G.eval())", "test_main.py::test_modes_of_the_networks"),
    (A, "copy.deepcopy(G).eval().requires_grad_(False)", "copy.deepcopy(G).eval()", "test_main.py::test_modes_of_the_networks"),
    (A + T, "(common.GRID,))", "(1,)).repeat(common.GRID)", "test_statistics.py::test_the_average_has_statistics_of_its_own"),
    (Q, "draw_codes(common.GRID, args))", "grid_codes(args)[:1].expand(common.GRID, -1))", "test_statistics.py::test_the_average_has_statistics_of_its_own"),
    (Q, "lambda: G_ema(fixed_z, fixed_c)", "lambda: G_ema.train()(fixed_z, fixed_c)", "test_main.py::test_modes_of_the_networks"),
    # resuming with other flags
    (T, 'values["param_groups"] = state[name].state_dict()["param_groups"]', "pass", "test_main.py::test_rates_and_betas_of_this_start_win"),
    (Q, '"act", "categories", "codes")', '"act", "categories")', "test_main.py::test_flags_that_change_the_networks_are_refused"),
    (A, "if args.resume and groups != args.groups:", "if False:", "test_cli.py::test_labels_that_changed_since_the_checkpoint"),
    (T, "if args.resume and words != args.words:", "if False:", "test_cli.py::test_labels_that_changed_since_the_checkpoint"),
    # samples and the labels beside them
    (A + T, "lambda: G_ema(noise(args.batch, args), next(batches))", "lambda: G_ema(torch.randn(args.batch, args.z_dim), next(batches))", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A, 'G_ema.train(args.sample_mode == "batch")', "pass", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (Q, "describe(row, args) for row in c.tolist()", "describe(row, args) for row in c.roll(1, 0).tolist()", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (Q, "enumerate(c[args.categories :], 1)", "enumerate(c[args.categories - 1 :], 1)", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A, "decode(row, args.groups) for row in y.tolist()", "decode(row, args.groups) for row in y.roll(1, 0).tolist()", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (A, "y[torch.arange(count) % len(y)]", "y.flip(0)[torch.arange(count) % len(y)]", "test_sampling.py::test_sample_labels_in_turn"),
    (A, "torch.rand(count, len(sizes), generator=own) * sizes).long()", "torch.rand(count, len(sizes), generator=own) * sizes).long().sort(0).values", "test_sampling.py::test_the_first_samples_are_of_all_kinds"),
    (T, 'encode([row["caption"] for row in rows], args)', 'encode(sorted(row["caption"] for row in rows), args)', "test_sampling.py::test_each_prompt_s_files_show_it"),
    (T, "sorted(set(flat), key=lambda caption: zlib.crc32(caption.encode()))", "sorted(set(flat))", "test_sampling.py::test_the_first_samples_are_of_all_kinds"),
    (T, "sorted(set(flat), key=", "sorted(flat, key=", "test_sampling.py::test_captions_of_the_training_come_in_turn"),
    (T, "    if args.prompts:\n", "    if args.prompts:\n        found = []\n", "test_sampling.py::test_prompts_of_both_kinds"),
    # what is logged
    (A, '"class_real": class_real, "class_fake": class_fake', '"class_real": class_fake, "class_fake": class_real', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (Q, '"category": category, "numbers": numbers', '"category": category, "numbers": information', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    # devices
    (Q, "args.codes, device=args.device)", "args.codes)", "test_devices.py::test_a_step_on_another_device"),
    (T, "torch.randperm(len(t), device=t.device)", "torch.randperm(len(t))", "test_devices.py::test_a_step_with_another_default"),
    (T, "torch.rand(len(t), device=t.device)", "torch.rand(len(t))", "test_devices.py::test_a_step_with_another_default"),
    (A, "y.to(args.device).split(args.batch)", "y.split(args.batch)", "test_devices.py::test_samples_on_another_device"),
    (T, "t[turns].to(args.device).split(args.batch)", "t[turns].split(args.batch)", "test_devices.py::test_samples_on_another_device"),
]  # fmt: skip
