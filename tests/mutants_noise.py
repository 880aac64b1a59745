"""Wrong versions of dcgan.py, lsgan.py, wgan.py, wgan_gp.py and sngan.py, and of the plumbing, whose text is the same in every script: see test_mutants.py."""

D = ["dcgan"]
L = ["lsgan"]
C = ["wgan"]
W = ["wgan_gp"]
S = ["sngan"]

# scripts, text, replacement, the test that must fail
MUTANTS = [
    # losses
    (D, "(t * softplus(-scores)", "(t * softplus(scores)", "test_losses.py::test_values"),
    (D, "(1 - t) * softplus(scores)", "(1 - t) * softplus(-scores)", "test_losses.py::test_gradients_push_the_right_way"),
    (D, "bce_with_logits(real, t_real) + bce_with_logits(fake, t_fake)", "bce_with_logits(real, t_fake) + bce_with_logits(fake, t_real)", "test_losses.py::test_soft_labels_move_the_optimum"),
    (D, "return softplus(-fake).mean()", "return -softplus(fake).mean()", "test_losses.py::test_dcgan_does_not_saturate"),
    (D, "real = D(x_real)\n        fake = D(x_fake.detach())", "fake = D(x_real)\n        real = D(x_fake.detach())", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (D + L, "targets(real, args.real_label), targets(fake, args.fake_label)", "targets(real, args.fake_label), targets(fake, args.real_label)", "test_step.py::test_step_equals_the_algorithm_by_hand"),
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
    (W, "(norm - 1) ** 2", "norm ** 2", "test_penalties.py::test_linear_critic"),
    (W, "gradient.flatten(1).norm(dim=1)", "gradient.norm(dim=1)", "test_penalties.py::test_linear_critic"),
    (W, "gradient.flatten(1).norm(dim=1)", "gradient.norm()", "test_penalties.py::test_linear_critic"),
    (W, "torch.ones_like(score)", "torch.ones_like(score) / len(score)", "test_penalties.py::test_linear_critic"),
    (W, "e * x_real + (1 - e) * x_fake)", "0 * e + x_real)", "test_penalties.py::test_quadratic_critic"),
    (W, "torch.rand(len(x_real), 1, 1, 1,", "torch.rand(1, 1, 1, 1,", "test_penalties.py::test_quadratic_critic"),
    (W, "torch.rand(len(x_real), 1, 1, 1,", "torch.rand(*x_real.shape,", "test_penalties.py::test_mixing_numbers_are_pinned"),
    (W, ", create_graph=True", "", "test_penalties.py::test_penalty_reaches_the_critic_and_not_the_generator"),
    (W, "        loss_D = loss + args.gp", "        with autocast(args):\n          loss_D = loss + args.gp", "test_penalties.py::test_train_step_keeps_the_penalty_out_of_autocast"),
    (W, "return ((norm", "return 0.5 * ((norm", "test_penalties.py::test_linear_game_has_the_known_solution"),
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
    (D + W, "D.requires_grad_(False)", "D.requires_grad_(True)", "test_step.py::test_isolation"),
    (W, "range(args.n_critic)", "range(args.n_critic - 1)", "test_step.py::test_isolation"),
    (W, "range(args.n_critic)", "range(args.n_critic + 1)", "test_step.py::test_isolation"),
    (W, "noise(len(x_real), args)", 'vars(args).setdefault("z", noise(len(x_real), args))', "test_step.py::test_noise_is_fresh_in_every_step"),
    (W, "        x_real = next(data)  #", "        x_real = next(data) if _ == 0 else x_real  #", "test_step.py::test_isolation"),
    (D, "loss_G = g_loss(D(x_fake))", "loss_G = g_loss(D(x_fake.detach() + 0 * x_fake))", "test_step.py::test_step_equals_the_algorithm_by_hand"),
    # networks
    (D + L, "        layers += [nn.Dropout(args.dropout)]\n        # (N, w[-1], base, base) -> (N, 1, 1, 1) -> (N,)\n        layers += [nn.Conv2d(w[-1], 1, base), nn", "        # (N, w[-1], base, base) -> (N, 1, 1, 1) -> (N,)\n        layers += [nn.Conv2d(w[-1], 1, base), nn.Dropout(args.dropout), nn", "test_networks.py::test_dropout_is_before_the_last_convolution_of_D_only"),
    (S, "layers += [conv(w[-1], 1, base)", "layers += [nn.Conv2d(w[-1], 1, base)", "test_networks.py::test_sngan_normalises_every_layer_of_D_and_none_of_G"),
    (S, "spectral_norm(nn.Conv2d(*shape).apply(init_weights))", "spectral_norm(nn.Conv2d(*shape))", "test_networks.py::test_initialisation"),
    (S, "layers += [nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1)", "layers += [spectral_norm(nn.ConvTranspose2d(w[-1], args.channels, 4, 2, 1))", "test_networks.py::test_sngan_normalises_every_layer_of_D_and_none_of_G"),
    (S, "layers += [conv(c_in, c_out, 4, 2, 1), nn", "layers += [conv(c_in, c_out, 4, 2, 1), nn.BatchNorm2d(c_out), nn", "test_networks.py::test_layers_are_the_paper_s"),
    (D + W, "nn.init.normal_(module.weight, 1.0, 0.02)", "nn.init.normal_(module.weight, 0.0, 0.02)", "test_networks.py::test_initialisation"),
    (D + W, "nn.init.normal_(module.weight, 0.0, 0.02)", "nn.init.normal_(module.weight, 0.0, 0.05)", "test_networks.py::test_initialisation"),
    (D + W, ", nn.Tanh()]", "]", "test_networks.py::test_output_range"),
    (D + W, "nn.Flatten(0)]", "nn.Flatten(0), nn.Sigmoid()]", "test_networks.py::test_scores_are_unbounded_float32"),
    (D + W, "return self.net(x).float()", "return self.net(x)", "test_networks.py::test_scores_are_unbounded_float32"),
    (D + W, "min(2**level, 8)", "2**level", "test_networks.py::test_widths"),
    # plumbing
    (D + W, "average.lerp_(p, 1 - decay)", "average.lerp_(p, decay)", "test_step.py::test_ema_closed_form"),
    (D + W, "        average.copy_(b)", "        pass", "test_step.py::test_ema_closed_form"),
    (D + W, "min(args.ema, (1 + i) / (10 + i))", "args.ema", "test_step.py::test_ema_warm_up"),
    (D + W, "min(args.ema, (1 + i) / (10 + i))", "min(args.ema, 1 / (10 + i))", "test_step.py::test_ema_reaches_its_flag"),
    (D + W, "p.grad = torch.zeros_like(p)", "pass", "test_step.py::test_a_parameter_without_gradient_counts_as_zero"),
    (D + W, "lambda: G_ema(fixed_z)", "lambda: G(fixed_z)", "test_training.py::test_observer_effect"),
    (D + W, "args.seed} {i} {rank}", "args.seed} {start} {rank}", "test_training.py::test_determinism"),
    (D + W, 'zlib.crc32(f"{args.seed} {i} {rank}".encode())', "(args.seed << 40) + (i << 8) + rank", "test_training.py::test_determinism"),
    (D + W, "        state[name].load_state_dict(values)\n", '        if name != "opt_D":\n            state[name].load_state_dict(values)\n', "test_training.py::test_resume_is_bit_exact"),
    (D + W, "        state[name].load_state_dict(values)\n", '        if name != "data":\n            state[name].load_state_dict(values)\n', "test_training.py::test_resume_is_bit_exact"),
    (D + W, "        state[name].load_state_dict(values)\n", '        if name != "G_ema":\n            state[name].load_state_dict(values)\n', "test_training.py::test_resume_is_bit_exact"),
    (D + W, 'return saved["step"]', 'return saved["step"] + 1', "test_training.py::test_resume_is_bit_exact"),
    # modes
    (D + S, "copy.deepcopy(G).eval()", "copy.deepcopy(G.eval())", "test_main.py::test_modes_of_the_networks"),
    (C, "copy.deepcopy(G).eval()", "copy.deepcopy(G)", "test_main.py::test_modes_of_the_networks"),
    (D, "else torch.channels_last", "else torch.contiguous_format", "test_main.py::test_modes_of_the_networks"),
    # resuming with other flags
    (D + S + L, 'values["param_groups"] = state[name].state_dict()["param_groups"]', "pass", "test_main.py::test_rates_and_betas_of_this_start_win"),
    (W, 'values["param_groups"] = state[name].state_dict()["param_groups"]', "pass", "test_main.py::test_kernels_are_those_of_this_device"),
    # samples and the labels beside them
    (D + C + S, "lambda: G_ema(noise(args.batch, args))", "lambda: G_ema(torch.randn(args.batch, args.z_dim))", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (L, 'G_ema.train(args.sample_mode == "batch")', "pass", "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (W, 'G_ema.train(args.sample_mode == "batch")', 'G_ema.train(args.sample_mode == "eval")', "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (D, '["state"]["G_ema"])', '["state"]["G"])', "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    (S, "saved = common.read_checkpoint(args.checkpoint, args.script)\n    G_ema", 'saved = common.read_checkpoint(f"{args.out}/last.pt", args.script)\n    G_ema', "test_sampling.py::test_every_sample_is_what_its_row_and_the_flags_say"),
    # more than one machine
    (D, "flat /= dist.get_world_size()", 'flat /= int(os.environ["LOCAL_WORLD_SIZE"])', "test_main.py::test_gradients_are_divided_by_all_processes"),
    (D, "if args.batch % world:", "if args.batch < world:", "test_main.py::test_setup_on_cpus"),
    (D, 'f"cuda:{os.environ.get(\'LOCAL_RANK\', 0)}"', 'f"cuda:{os.environ.get(\'RANK\', 0)}"', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (W, 'int(os.environ.get("RANK", 0))', 'int(os.environ.get("LOCAL_RANK", 0))', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (S, 'int(os.environ.get("WORLD_SIZE", 1))', 'int(os.environ.get("LOCAL_WORLD_SIZE", 1))', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, '"nccl" if "cuda" in args.device else "gloo"', '"gloo"', "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, " and torch.cuda.is_bf16_supported(including_emulation=False)", "", "test_main.py::test_setup_on_many_machines_with_cuda"),
    (D, " and world == 1", "", "test_main.py::test_mps_is_for_one_process"),
    # what is logged
    (D + S, '"loss_D": loss_D.detach(), "loss_G": loss_G.detach()', '"loss_D": loss_G.detach(), "loss_G": loss_D.detach()', "test_step.py::test_step_equals_the_algorithm_by_hand"),
    (D, "            update_ema(G_ema, G, decay)\n            run.log(metrics)\n", "            run.log(metrics)\n            update_ema(G_ema, G, decay)\n", "test_logs.py::test_log_and_grid_see_the_same_average"),
    # devices
    (D + C + W, "args.z_dim, device=args.device)", "args.z_dim)", "test_devices.py::test_a_step_on_another_device"),
    (W, ", 1, 1, 1, device=x_real.device)", ", 1, 1, 1)", "test_devices.py::test_a_step_on_another_device"),
    (S, "relu(1 + fake).mean()", "relu(torch.ones(len(fake)) + fake).mean()", "test_devices.py::test_a_step_on_another_device"),
    (C, "-fake.mean()", "-(fake + torch.zeros(len(fake))).mean()", "test_devices.py::test_a_step_with_another_default"),
    (L, "((real - t_real) ** 2).mean()", "((real - torch.zeros(len(real)) - t_real) ** 2).mean()", "test_devices.py::test_a_step_on_another_device"),
    (D, 'if world > 1 and ":" in args.device:', "if False:", "test_devices.py::test_one_gpu_for_several_processes_is_refused"),
    (S, "args.z_dim, device=args.device)", "args.z_dim)", "test_devices.py::test_samples_on_another_device"),
]  # fmt: skip

# the same for what two processes do: tests/ranks.py
RANK_MUTANTS = [
    (D + W, "        flat /= dist.get_world_size()\n", "", "test_ranks.py::test_gradients_are_those_of_one_process"),
    (D + W, "{i} {rank}", "{i}", "test_ranks.py::test_weights_are_equal_and_noise_differs"),
    (D + W, "        dist.all_reduce(flat)\n", "", "test_ranks.py::test_weights_are_equal_and_noise_differs"),
]  # fmt: skip
