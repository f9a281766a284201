#include "server/http/exchange.h"

#include <utility>

#include "base/check.h"

namespace nibble::server {

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (header.name == name) return header.value;
  }
  return {};
}

size_t HttpRequest::CountHeaders(std::string_view name) const {
  size_t count = 0;
  for (const HttpHeader& header : headers) count += header.name == name ? 1 : 0;
  return count;
}

Exchange::Exchange(HttpRequest request, std::function<void()> wake)
    : request_(std::move(request)), wake_(std::move(wake)) {}

void Exchange::AddHeader(std::string name, std::string value) {
  std::lock_guard lock(mutex_);
  common_headers_.push_back({std::move(name), std::move(value)});
}

bool Exchange::Respond(HttpResponse response) {
  {
    std::lock_guard lock(mutex_);
    if (started_) return false;
    started_ = true;
    bytes_ = std::move(response.body);
    response.body.clear();
    head_ = std::move(response);
    finished_ = true;
  }
  wake_();
  return true;
}

void Exchange::StartStream(HttpResponse head) {
  std::lock_guard lock(mutex_);
  if (started_) return;
  started_ = true;
  stream_ = true;
  head_ = std::move(head);
}

void Exchange::AllowEarlyStart(HttpResponse head) {
  std::lock_guard lock(mutex_);
  early_head_ = std::move(head);
}

bool Exchange::StartEarly() {
  std::optional<HttpResponse> head;
  {
    std::lock_guard lock(mutex_);
    if (started_ || !early_head_) return false;
    head = std::move(early_head_);
  }
  StartStream(std::move(*head));
  return true;
}

void Exchange::Write(std::string_view bytes) {
  {
    std::lock_guard lock(mutex_);
    NIBBLE_CHECK(stream_, "Write without StartStream");
    if (gone_ || finished_) return;
    bytes_.append(bytes);
  }
  wake_();
}

void Exchange::Finish() {
  {
    std::lock_guard lock(mutex_);
    finished_ = true;
  }
  wake_();
}

bool Exchange::congested() const {
  std::lock_guard lock(mutex_);
  return bytes_.size() + in_flight_ > kHighWater;
}

bool Exchange::gone() const {
  std::lock_guard lock(mutex_);
  return gone_;
}

bool Exchange::streaming() const {
  std::lock_guard lock(mutex_);
  return stream_;
}

void Exchange::SetCallbacks(std::function<void()> on_gone, std::function<void()> on_drained) {
  bool gone = false;
  {
    std::lock_guard lock(mutex_);
    gone = gone_;
    if (!gone) {
      on_gone_ = std::move(on_gone);
      on_drained_ = std::move(on_drained);
    }
  }
  if (gone) on_gone();
}

Exchange::Output Exchange::Take() {
  std::lock_guard lock(mutex_);
  Output output;
  output.stream = stream_;
  if (head_) {
    output.head = std::move(head_);
    head_.reset();
    for (HttpHeader& header : common_headers_) output.head->headers.push_back(std::move(header));
    common_headers_.clear();
  }
  output.bytes = std::exchange(bytes_, {});
  output.finished = finished_;
  in_flight_ = output.bytes.size();
  return output;
}

void Exchange::Sent() {
  std::function<void()> drained;
  {
    std::lock_guard lock(mutex_);
    if (in_flight_ == 0) return;
    in_flight_ = 0;
    drained = on_drained_;
  }
  if (drained) drained();
}

void Exchange::MarkGone() {
  std::function<void()> gone;
  {
    std::lock_guard lock(mutex_);
    if (gone_) return;
    gone_ = true;
    gone = std::move(on_gone_);
    on_gone_ = nullptr;
    on_drained_ = nullptr;
    bytes_.clear();
  }
  if (gone) gone();
}

void Exchange::End() {
  std::function<void()> gone;
  std::function<void()> drained;
  {
    std::lock_guard lock(mutex_);
    gone.swap(on_gone_);  // destroyed after the lock: they may own the last reference to much
    drained.swap(on_drained_);
  }
}

}  // namespace nibble::server
