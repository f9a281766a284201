// Test support: HTTP over a plain socket, so that tests control every byte and every close.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::server {

struct TestResponse {
  int status = 0;  // 0: the connection ended without an answer
  std::string head;
  std::string body;  // chunks joined
  bool complete = false;

  bool Has(std::string_view text) const { return head.find(text) != std::string::npos; }
};

class TestClient {
 public:
  explicit TestClient(uint16_t port, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Close();
  }
  ~TestClient() { Close(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void CloseSending() { shutdown(fd_, SHUT_WR); }

  // More bytes into the buffer; false at the end of the stream or after the timeout.
  bool Fill(std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    pollfd ready{fd_, POLLIN, 0};
    if (poll(&ready, 1, static_cast<int>(timeout.count())) <= 0) return false;
    char bytes[16384];
    const ssize_t got = recv(fd_, bytes, sizeof bytes, 0);
    if (got <= 0) {
      closed_ = true;
      return false;
    }
    buffer_.append(bytes, static_cast<size_t>(got));
    return true;
  }
  // Reads on until the buffer holds the text; false when it never comes.
  bool WaitFor(std::string_view text,
               std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    while (buffer_.find(text) == std::string::npos) {
      if (!Fill(timeout)) return false;
    }
    return true;
  }
  bool WaitClosed(std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    while (Fill(timeout)) {
    }
    return closed_;
  }
  const std::string& buffer() const { return buffer_; }

  // The next answer; interim ones (1xx) are skipped. `bodiless`: the answer to HEAD.
  TestResponse Read(bool bodiless = false) {
    TestResponse response;
    do {
      response = TestResponse();
      if (!WaitFor("\r\n\r\n")) return response;
      const size_t end = buffer_.find("\r\n\r\n") + 4;
      response.head = buffer_.substr(0, end);
      response.status = std::atoi(response.head.c_str() + 9);
      buffer_.erase(0, end);
    } while (response.status / 100 == 1);
    if (bodiless || response.status == 204) {
      response.complete = true;
    } else if (response.Has("Transfer-Encoding: chunked")) {
      response.complete = ReadChunks(response.body);
    } else if (const size_t at = response.head.find("Content-Length: "); at != std::string::npos) {
      const auto length = static_cast<size_t>(std::atoll(response.head.c_str() + at + 16));
      while (buffer_.size() < length && Fill()) {
      }
      response.complete = buffer_.size() >= length;
      response.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    } else {
      response.complete = WaitClosed();
      response.body.swap(buffer_);
    }
    return response;
  }

 private:
  bool ReadChunks(std::string& body) {
    while (true) {
      if (!WaitFor("\r\n")) return false;
      const size_t line = buffer_.find("\r\n");
      const size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
      while (buffer_.size() < line + 2 + size + 2) {
        if (!Fill()) return false;
      }
      body += buffer_.substr(line + 2, size);
      buffer_.erase(0, line + 2 + size + 2);
      if (size == 0) return true;
    }
  }

  int fd_ = -1;
  std::string buffer_;
  bool closed_ = false;
};

inline std::string PostRequest(std::string_view path, std::string_view body,
                               std::string_view headers = "Content-Type: application/json\r\n") {
  std::string request = "POST " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n";
  request.append(headers);
  return request + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
         std::string(body);
}

inline std::string GetRequest(std::string_view path, std::string_view headers = "") {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n" + std::string(headers) +
         "\r\n";
}

// The data of every event of a stream, [DONE] included; comments are skipped.
inline std::vector<std::string> SseData(std::string_view stream) {
  std::vector<std::string> events;
  while (!stream.empty()) {
    const size_t end = stream.find("\n\n");
    const std::string_view event = stream.substr(0, end);
    if (event.starts_with("data: ")) events.emplace_back(event.substr(6));
    if (end == std::string_view::npos) break;
    stream.remove_prefix(end + 2);
  }
  return events;
}

}  // namespace nibble::server
